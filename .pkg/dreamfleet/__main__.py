"""Runs the command line with `python -m dreamfleet`."""

from dreamfleet.deploy.command_line import main

if __name__ == "__main__":
    raise SystemExit(main())
