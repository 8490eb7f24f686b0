"""`python -m hcc`, the same as `hcc`."""

import sys

from hcc.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
