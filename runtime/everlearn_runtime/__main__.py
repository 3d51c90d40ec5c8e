"""``python -m everlearn_runtime``: the device's command line."""

import sys

from everlearn_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m everlearn_runtime"))
