"""``python -m everlearn``: the command line, as ``accelerate launch -m everlearn`` starts it."""

import sys

from everlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
