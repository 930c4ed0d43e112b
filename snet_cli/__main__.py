"""`python -m snet_cli`: the same as the command `snet`."""

from snet_cli.cli.main import main

if __name__ == "__main__":
    main()
