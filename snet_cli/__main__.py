"""`python -m snet_cli`: the same as the command `snet`."""

import sys

from snet_cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
