"""``python -m everlearn_runtime.cli``."""

import sys

from everlearn_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
