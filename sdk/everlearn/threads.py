"""How long threads that share one piece of work wait in a loop for each other before they sleep.

PyTorch cuts nearly every operation on a CPU into a part for each core (OpenMP), and a thread that is
done first goes round in a loop until the last one is: by default for milliseconds. As long as every
thread has a core that saves the time of falling asleep and waking up. As soon as another program
wants a core, the thread that waits keeps the core that the late one needs, in every one of thousands
of operations a second. A tenth of a millisecond is enough for threads that are on time; after that,
sleep is cheaper.

Measured with a training step of NTK-CL on two cores, as ratios to the default's step alone: alone
1.0, beside one busy program 2.3 and beside two 2.2 (the default: 3.0 and 3.6, and far more where the
whole machine is busy). With no loop at all 1.5 alone, which is why it is not
``OMP_WAIT_POLICY=passive``.

OpenMP reads its settings once, when it is loaded, that is when torch is imported for the first time,
and nothing changes them later; so ``import everlearn`` sets them before it imports torch. A program
that imports torch first goes on with the default: import everlearn before it, or set
``GOMP_SPINCOUNT=10000`` in the environment.
"""

import os
from collections.abc import MutableMapping

DEFAULTS = {
    "GOMP_SPINCOUNT": "10000",  # GNU's library, that of torch on Linux: rounds, 0.1 to 0.4 ms
    "KMP_BLOCKTIME": "1",  # LLVM's and Intel's library, that of torch elsewhere: ms, at least 1
}
STANDARD = "OMP_WAIT_POLICY"
"""What the standard itself has for it: never set here, but a user's wish like the others."""


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads wait, unless the user has said anything about it.

    Processes that this one starts have the same settings.

    >>> settings = {}
    >>> wait_briefly(settings)
    >>> settings
    {'GOMP_SPINCOUNT': '10000', 'KMP_BLOCKTIME': '1'}
    """
    if not any(name in environment for name in (STANDARD, *DEFAULTS)):
        environment.update(DEFAULTS)
