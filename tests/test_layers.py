"""Imports follow the arrows: sdk to export to runtime, and never back."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"sdk": "everlearn", "export": "everlearn_export", "runtime": "everlearn_runtime"}
WORKSTATION = {
    "accelerate",
    "jinja2",
    "matplotlib",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "onnxslim",
    "sklearn",
    "tqdm",
}
FORBIDDEN = {
    "sdk": set[str](),
    "export": {"everlearn", "timm", "sklearn"},
    "runtime": {"everlearn", "everlearn_export", *WORKSTATION},
}


def imported(source: str) -> set[str]:
    """The packages that a module imports anywhere in it, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("folder", PACKAGES)
def test_imports_follow_the_arrows(folder: str) -> None:
    modules = list((ROOT / folder).rglob("*.py"))
    assert modules
    wrong = {str(path): bad for path in modules if (bad := imported(path.read_text()) & FORBIDDEN[folder])}
    assert wrong == {}


def test_timm_is_imported_by_backbones_alone() -> None:
    """Beside a torch for CPUs it wants their guard first, whatever of everlearn is imported first."""
    modules = [path for path in (ROOT / "sdk").rglob("*.py") if path.parent.name != "backbones"]
    assert modules
    assert [str(path) for path in modules if "timm" in imported(path.read_text())] == []


def test_the_walk_sees_every_kind_of_import() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g as h\nif True:\n    from i import j"
    assert imported(source) == {"a", "c", "g", "i"}


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_folder_holds_its_package_and_nothing_else(folder: str) -> None:
    inside = {path.name for path in (ROOT / folder).iterdir() if not path.name.startswith((".", "__"))}
    assert inside == {PACKAGES[folder]}
    assert (ROOT / folder / PACKAGES[folder] / "py.typed").is_file()


@pytest.mark.parametrize("module", ["everlearn_runtime", "everlearn_runtime.cli"])
def test_the_runtime_brings_in_nothing_of_the_workstation(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = set(out.split())
    assert "everlearn_runtime" in loaded
    assert loaded.isdisjoint({"everlearn", "everlearn_export", *WORKSTATION})


BASE_INSTALL = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("timm", "onnx") else find(name, *rest)
"""
NEEDS = 'training (without timm, onnx here) needs: pip install "everlearn[train,cpu]"'


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_without_the_training_extra_one_line_names_it() -> None:
    program = (
        BASE_INSTALL
        + """
import everlearn
try:
    everlearn.Learner
except ImportError as error:
    print(error)
"""
    )
    assert python(program).stdout == f"{NEEDS}\n"


def test_without_the_training_extra_a_command_is_told_in_one_line() -> None:
    program = BASE_INSTALL + "from everlearn.cli import main; sys.exit(main(['train', 'x', '--out', 'y']))"
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"everlearn: {NEEDS}\n")
    assert python(BASE_INSTALL + "from everlearn.cli import main; main(['--help'])").returncode == 0


@pytest.mark.parametrize(
    "program",
    [
        "import everlearn, everlearn_export; everlearn.Prototypes; dir(everlearn)",
        "from everlearn.cli import main; main(['--help'])",
        "from everlearn.cli import main; main(['train', '--help'])",
        "from everlearn.cli import main; main(['predict', '--help'])",
        "from everlearn.cli import main; main(['train', '--nonesuch'])",
    ],
)
def test_help_and_mistakes_wait_for_nothing_heavy(program: str) -> None:
    tell = "import atexit, sys; atexit.register(lambda: print('MODULES', *sys.modules, file=sys.stderr)); "
    loaded = python(tell + program).stderr.split("MODULES ")[1].split()
    assert "everlearn.threads" in loaded
    heavy = {*WORKSTATION, "onnxruntime", "PIL", "scipy"}
    assert {name.split(".")[0] for name in loaded}.isdisjoint(heavy)


@pytest.mark.parametrize("package", ["everlearn", "everlearn.methods", "everlearn_export"])
def test_late_names_are_all_there_and_none_is_hidden_by_a_module(package: str) -> None:
    module = importlib.import_module(package)
    folder = Path(str(module.__file__)).parent
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        found = getattr(module, name)
        is_module = (folder / f"{name}.py").is_file() or (folder / name).is_dir()
        assert is_module == isinstance(found, ModuleType), name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonesuch'"):
        module.nonesuch  # noqa: B018


def test_type_checkers_are_told_of_the_same_late_names() -> None:
    for package in ("everlearn", "everlearn.methods", "everlearn_export"):
        module = importlib.import_module(package)
        (typed,) = [
            node
            for node in ast.parse(Path(str(module.__file__)).read_text()).body
            if isinstance(node, ast.If)
        ]
        told = {name.name for node in typed.body if isinstance(node, ast.ImportFrom) for name in node.names}
        assert told == set(module.__all__) - {"__version__"}
