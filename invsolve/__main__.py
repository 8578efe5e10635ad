"""`invsolve` and `python -m invsolve`: hand over to the command line."""

import sys


def main() -> None:
    from invsolve.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
