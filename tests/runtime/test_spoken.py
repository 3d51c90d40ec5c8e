"""Messages at a command line: whose they are, and options in the place of Python's arguments."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import everlearn_runtime
from everlearn_runtime.cli import main
from everlearn_runtime.spoken import ARGUMENTS, as_typed, told

Output = pytest.CaptureFixture[str]

# Only who calls the library can bring these about: the command line always has a state where one is needed,
# prepares every picture, and has no option for the rest.
NOT_BY_COMMANDS = {"balanced", "channels", "crop", "fill", "projection", "sections"}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    np.save(tmp_path / "grey.npy", np.zeros((8, 8), np.uint8))
    return str(tmp_path / "grey.npy")


def test_an_argument_is_told_as_what_is_typed() -> None:
    for message, told_so in {
        "open with backend='onnxruntime' and CUDA": "open with --backend onnxruntime and CUDA",
        "with migrate=True carries over": "with `everlearn-device migrate` carries over",
        "give a file, or state=None": "give a file, or no --state",
        "open the bundle with state=...": "open the bundle with --state FILE",
        "by more than guard=0.1 allows; nothing": "by more than --guard 0.1 allows; nothing",
        "lower rate=1e-05.": "lower --rate 1e-05.",
        "to is -1; see history()": "VERSION is -1; see `everlearn-device history`",
        "since is -1, or None": "--since is -1, or leave it out",
        "Ridge with removable=True": "Ridge with --removable",
        "give since=, a version": "give --since, a version",
    }.items():
        assert as_typed(message) == told_so
    assert as_typed("see history()", "python -m x") == "see `python -m x history`"


@pytest.mark.parametrize(
    "text",
    [
        "no class 'state=None' to forget",
        "a/steps=3.png: cut short",
        "steps=3.png: cut short",
        "it has rate 3",
    ],
)
def test_names_are_left_alone(text: str) -> None:
    assert as_typed(text) == text


def raised() -> Iterator[tuple[str, str]]:
    """The text of every error in the runtime's source, and where."""
    root = Path(everlearn_runtime.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith(("Error", "OtherModel")):
                parts = [part for part in ast.walk(node) if isinstance(part, (ast.Constant, ast.JoinedStr))]
                for part in parts:
                    yield f"{path.name}:{node.lineno}", re.sub(r"\{[^{}]*\}", "1", _text(part))


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(_text(part) if isinstance(part, ast.Constant) else "1" for part in node.values)


def test_every_argument_that_a_message_names_can_be_typed() -> None:
    found: set[str] = set()
    for where, text in raised():
        for name in re.findall(r"(?<![\w'./-])([a-z]\w*)=(?!value)", text):
            assert name in ARGUMENTS or name in NOT_BY_COMMANDS, f"{where}: {text}"
            found.add(name)
    assert {"train_step", "migrate", "backend", "guard"} <= found


def test_messages_begin_with_what_was_typed(bundle: Path, picture: str, capsys: Output) -> None:
    for program in ("everlearn", "everlearn-device", "python -m everlearn_runtime"):
        assert main(["predict", str(bundle), picture, "--threads", "0"], program) == 2
        said = capsys.readouterr().err
        assert said == f"{program}: --threads is 0; leave it out, or give a whole number, at least 1\n"
        assert main(["predict", str(bundle), picture, "--state", "none.db"], program) == 2
        other = "everlearn-device" if program == "everlearn" else program
        assert f"`{other} learn` makes one" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["predict", "--help"], program)
        told_so = capsys.readouterr().out
        assert told_so.startswith(f"usage: {program} predict ")
        assert f"example:\n  {program} predict " in told_so
    done = subprocess.run(
        [sys.executable, "-m", "everlearn_runtime", "info", "none"],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "python -m everlearn_runtime: none: no such file or folder\n"


def test_slips_name_options(bundle: Path, tmp_path: Path, picture: str, capsys: Output) -> None:
    here, state = str(bundle), ["--state", str(tmp_path / "device.db")]
    assert main(["learn", here, "cup", picture, *state]) == 0
    for arguments, says in (
        (["predict", here, picture, "--false-alarm", "3"], "--false-alarm is 3.0; "),
        (["predict", here, picture, "--top", "0"], "--top is 0; "),
        (["learn", here, "cup", picture, "--guard", "7", *state], "--guard is 7.0; "),
        (["learn", here, "cup", picture, "--guard", ".1", *state], "export it with --canaries 5"),
        (["learn", here, "cup", picture, "--state", ":memory:"], "give a file, or no --state"),
        (["learn", here, "cup", picture, "--state", f"{here}/x.db"], "--state is "),
        (["delta", here, "x", *state, "--since", "-1"], "history`, or leave it out"),
        (["delta", here, "x", *state, "--min-count", "0"], "--min-count is 0; "),
        (["benchmark", here, "--batch", "0"], "--batch is [0]; "),
    ):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1


def test_errors_of_the_system_are_sentences() -> None:
    assert (
        told(OSError(28, "No space left on device", "run/log.csv")) == "run/log.csv: no space left on device"
    )
    assert told(OSError(28, "No space left on device")) == "no space left on device"
    assert told(ValueError("state is 3")) == "state is 3"


def test_an_interrupt_is_one_line(
    bundle: Path, picture: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> NDArray[np.uint8]:
        raise KeyboardInterrupt

    monkeypatch.setattr("everlearn_runtime.edge.EdgeLearner.learn", stop)
    monkeypatch.setattr("everlearn_runtime.edge.EdgeLearner.predict", stop)
    assert main(["learn", str(bundle), "cup", picture, "--state", str(tmp_path / "device.db")]) == 130
    said = "interrupted; the change is made or not, never in part: `everlearn-device history` says which\n"
    assert capsys.readouterr() == ("", f"everlearn-device: {said}")
    assert main(["predict", str(bundle), picture], "everlearn") == 130
    assert capsys.readouterr() == ("", "everlearn: interrupted\n")
