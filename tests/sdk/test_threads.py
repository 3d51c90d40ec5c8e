"""Threads that wait for each other sleep, from `import everlearn` on, unless the user says otherwise."""

import os
import re
import subprocess
import sys

import pytest

from everlearn.threads import SETTINGS, wait_asleep

MODULES = ["everlearn", "everlearn.cli", "everlearn.ntk", "everlearn.data", "everlearn.threads"]


def waits(program: str, **settings: str) -> str:
    """How OpenMP says that its threads wait, which it does once, as soon as it is loaded.

    GNU's library calls its default passive and goes round all the same: its number of rounds counts.
    """
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "OMP_DISPLAY_ENV": "verbose", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = dict(re.findall(r"(GOMP_SPINCOUNT|OMP_WAIT_POLICY) *= *'(\w+)'", done.stderr))
    if not shown:
        pytest.skip("this build of torch has no OpenMP that shows its settings")
    if "GOMP_SPINCOUNT" in shown:
        return "asleep" if int(shown["GOMP_SPINCOUNT"]) == 0 else "in a loop"
    return "asleep" if shown["OMP_WAIT_POLICY"] == "PASSIVE" else "in a loop"


@pytest.mark.parametrize("module", MODULES)
def test_the_policy_is_in_force_after_the_import(module: str) -> None:
    assert waits(f"import {module}, torch") == "asleep"


def test_what_torch_alone_does_is_noticed() -> None:
    assert waits("import torch") == "in a loop"


def test_what_the_user_says_stays() -> None:
    assert waits("import everlearn", OMP_WAIT_POLICY="active") == "in a loop"


def test_a_child_process_inherits_it() -> None:
    parent = "import everlearn, os, subprocess, sys; os.environ['OMP_DISPLAY_ENV'] = 'verbose'; "
    child = "subprocess.run([sys.executable, '-c', 'import torch'], check=True)"
    assert waits(parent + child, OMP_DISPLAY_ENV="false") == "asleep"


@pytest.mark.parametrize("name", SETTINGS)
def test_any_setting_of_the_users_is_left_alone(name: str) -> None:
    environment = {name: "1"}
    wait_asleep(environment)
    assert environment == {name: "1"}
