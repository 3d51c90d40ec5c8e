"""Threads wait for each other briefly, from `import everlearn` on, unless the user says otherwise."""

import os
import re
import subprocess
import sys

import pytest

from everlearn.threads import DEFAULTS, STANDARD, wait_briefly

NAMES = [STANDARD, *DEFAULTS]


def rounds(program: str, **settings: str) -> int:
    """How many rounds GNU's OpenMP waits in a loop: it says so once, as soon as it is loaded."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "OMP_DISPLAY_ENV": "verbose", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = re.search(r"GOMP_SPINCOUNT *= *'(\d+)'", done.stderr)
    if shown is None:
        pytest.skip("this build of torch has another OpenMP than GNU's")
    return int(shown[1])


@pytest.mark.parametrize("module", ["everlearn", "everlearn.cli"])
def test_the_setting_is_in_force_after_the_import(module: str) -> None:
    assert rounds(f"import {module}, torch") == int(DEFAULTS["GOMP_SPINCOUNT"])


def test_torch_by_itself_waits_longer() -> None:
    assert rounds("import torch") > 10 * int(DEFAULTS["GOMP_SPINCOUNT"])


def test_what_the_user_says_stays() -> None:
    assert rounds("import everlearn", GOMP_SPINCOUNT="7") == 7
    assert rounds("import everlearn", OMP_WAIT_POLICY="passive") == 0


def test_a_child_process_inherits_it() -> None:
    parent = "import everlearn, os, subprocess, sys; os.environ['OMP_DISPLAY_ENV'] = 'verbose'; "
    child = "subprocess.run([sys.executable, '-c', 'import torch'], check=True)"
    assert rounds(parent + child, OMP_DISPLAY_ENV="false") == int(DEFAULTS["GOMP_SPINCOUNT"])


@pytest.mark.parametrize("name", NAMES)
def test_any_setting_of_the_users_is_left_alone(name: str) -> None:
    environment = {name: "1"}
    wait_briefly(environment)
    assert environment == {name: "1"}
