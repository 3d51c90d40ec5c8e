"""How threads that share one piece of work wait for each other: asleep.

PyTorch cuts nearly every operation on a CPU into a part for each core (OpenMP), and by default a
thread that is done first goes round in a loop until the last one is, for milliseconds. As long as
every thread has a core that saves the time of falling asleep and waking up. As soon as another
program wants a core, the thread that waits keeps the core that the late one would need: training
beside one busy program on two cores was 5 to 13 times slower for it.

OpenMP reads its settings once, when it is loaded, that is when torch is imported for the first
time. There is no way to change them later, so ``import everlearn`` sets them before it imports
torch. Where a program imports torch first, set ``OMP_WAIT_POLICY=passive`` in its environment.
"""

import os
from collections.abc import MutableMapping

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What says how OpenMP's threads wait: by the standard, for GNU's library, and for LLVM's and Intel's."""


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has said how they shall.

    Processes that this one starts have the same setting.

    >>> settings = {}
    >>> wait_asleep(settings)
    >>> settings
    {'OMP_WAIT_POLICY': 'passive'}
    """
    if not any(name in environment for name in SETTINGS):
        environment["OMP_WAIT_POLICY"] = "passive"
