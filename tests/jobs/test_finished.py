"""A result that is there already: the command that made it says so, every other is refused."""

from pathlib import Path

import h5py
import pytest
import torch
import torch.distributed as dist

from invsolve.errors import UserError
from invsolve.jobs import reconstruct_file
from invsolve.training import parallel
from tests.support.types import Cli
from tests.support.volumes import plugin, request, scan

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


def test_also_of_processes_that_share_volumes(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under torchrun, with one process that is a team."""
    team = parallel.Team(0, 1, torch.device("cpu"))
    monkeypatch.setattr(parallel, "started_together", lambda: True)
    monkeypatch.setattr(parallel, "join", lambda device: team)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        said: list[str] = []
        wanted = request(scan, tmp_path / "recon.h5", prior=None, strategy="tv-3d", parameters={"steps": 3}, samples=1)
        first = reconstruct_file(wanted, said.append)
        before = wanted.out.read_bytes()
        again = reconstruct_file(wanted, said.append)
        assert any("was finished by the same command before" in line for line in said)
        assert (again["items"], again["discrepancy"]) == (first["items"], first["discrepancy"])
        assert wanted.out.read_bytes() == before
        other = request(scan, wanted.out, prior=None, strategy="tv-3d", parameters={"steps": 4}, samples=1)
        with pytest.raises(UserError, match="made by another command"):
            reconstruct_file(other)
    finally:
        dist.destroy_process_group()
