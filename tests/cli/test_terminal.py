"""What reaches the terminal: no name from a file steers it or fills it."""

from pathlib import Path

import h5py
import numpy as np

from invsolve.errors import printable
from tests.support.types import Cli

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e" + "n" * 60_000


def test_names_of_files_cannot_steer_or_fill_the_terminal(tmp_path: Path, cli: Cli) -> None:
    with h5py.File(tmp_path / "named.h5", "w") as file:
        file[EVIL] = np.zeros((2, 3))
    for arguments in (
        ("inspect", tmp_path / "named.h5"),
        ("reconstruct", tmp_path / "named.h5", "-o", tmp_path / "out.h5", "--strategy", "linear"),
        ("reconstruct", EVIL, "-o", tmp_path / "out.h5", "--strategy", "linear"),
        ("evaluate", f"\x1b[2J{tmp_path}"),
    ):
        _, out, err = cli(*arguments)
        assert all(line.isprintable() for line in (out + err).split("\n")), arguments
        assert 0 < len(out + err) < 10_000, arguments


def test_printable_keeps_what_people_write() -> None:
    line = "Messung/größe 5 µm: 日本 'x', expected 3; choose another"
    assert printable(line) == line
    assert printable("a\nb\tc") == "a\nb       c"
    assert printable("\x1b[2J") == "\\x1b[2J"
    assert printable("\udcff\u202e") == "\\xff\\u202e"
    long = printable("x" * 60_000 + ": is wrong; mend it")
    assert long.endswith(": is wrong; mend it")
    assert "60001 characters" in long
