"""``python -m simvm``: the command line."""

import sys

from simvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
