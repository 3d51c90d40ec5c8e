"""Imports follow the arrows: sdk to export to runtime, and never back."""

import ast
import subprocess
import sys
from pathlib import Path

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


def test_without_the_training_extra_one_line_names_it() -> None:
    program = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("timm", "onnx") else find(name)
try:
    import everlearn
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == 'training (without timm, onnx here) needs: pip install "everlearn[train,cpu]"\n'
