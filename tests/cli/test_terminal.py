"""What reaches the terminal: no name from a file steers it or fills it."""

from pathlib import Path

import h5py
import numpy as np

from invsolve.errors import printable
from tests.support.results import CONFIG, write_result
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


def test_text_of_a_result_cannot_steer_or_fill_a_page(tmp_path: Path, cli: Cli) -> None:
    evil = f"\x1b[31mred\x07</script><script>alert(1)</script>\u202e{'Z' * 60_000}"
    record = {
        **{key: {"name": evil, "parameters": {evil[:50]: evil}} for key in ("strategy", "prior", "operator", "noise")},
        "notes": [evil],
        "command": evil,
        "input": {"file": evil},
        "versions": {evil: evil},
        "machine": evil,
    }
    path = write_result(tmp_path / "r.h5", 1, (1, 16, 16), 2, unit=evil[:50_000], config=CONFIG | record)
    for command in (("report", path, "-o", tmp_path / "r.html"), ("inspect", path)):
        code, out, err = cli(*command)
        assert code == 0, err
        assert all(line.isprintable() for line in (out + err).splitlines())
        assert len(out) < 10_000
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for forbidden in ("\x1b", "\x07", "\u202e", "<script>alert", "Z" * 1000):
        assert forbidden not in page, forbidden
    assert "&lt;script&gt;alert(1)" in page
