"""The command line without an installed script: `python cli.py COMMAND`."""

from abc_toolkit.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
