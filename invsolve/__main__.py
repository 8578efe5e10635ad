"""`invsolve` and `python -m invsolve`: hand over to the command line."""

import io
import sys


def main() -> None:
    from invsolve.cli.app import run

    for stream in (sys.stdout, sys.stderr):
        # A file's name that is no text is printed as its bytes, so that printed commands run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
