"""A result that is there already: the command that made it says so, every other is refused."""

from pathlib import Path

import h5py

from tests.support.types import Cli
from tests.support.volumes import plugin, scan

__all__ = ["plugin", "scan"]


def test_the_command_of_a_finished_result_says_so(scan: Path, tmp_path: Path, cli: Cli) -> None:
    """A kill may come after the result got its name, and before what lay beside it was removed."""
    out = tmp_path / "recon.h5"
    command = ("reconstruct", scan, "-o", out, "--strategy", "linear")
    assert cli(*command)[0] == 0
    before = out.read_bytes()
    parts = tmp_path / "recon.h5.parts"
    parts.mkdir()
    (parts / "000000-000001.h5").write_bytes(before)
    (tmp_path / "recon.h5.partial.state").write_bytes(b"half")
    code, _, err = cli(*command)
    assert code == 0, err
    assert "finished" in err
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("recon.h5*")) == ["recon.h5"]
    with h5py.File(out, "a") as file:
        file["done"][0] = False
    assert cli(*command)[0] == 2
