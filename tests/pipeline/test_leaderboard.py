"""Published set-ups, small and on stand-in data: every row has quality, coverage and cost, and says which case it is."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import invsolve
from invsolve.pipeline.leaderboard import setups, write_setup
from tests.support.types import Cli

SCATTERING = Path(__file__).parents[2] / "examples" / "operators" / "scattering.py"
#: What makes each set-up small, and its images.
SMALL = {
    "dm4ct": ["variables.pixel_size=0.03", "variables.noise=gaussian:0.05"],
    "inverse-scattering": ["variables.sources=4", "variables.wavelengths=2.0", "variables.noise=gaussian:0.05"],
    "fastmri-knee": ["variables.noise=gaussian:0.05"],
}
#: Two methods of few steps, one that draws and one that does not.
METHODS = (
    'variables.method={sweep = [{name = "mmps", set = {steps = 4}, samples = 3}, '
    '{name = "red-diff", set = {steps = 4}, samples = 1}]}'
)


def images(path: Path, size: int, complex_: bool) -> Path:
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(1, 1, 4, 4)).repeat(size // 4, -1).repeat(size // 4, -2) * 0.2
    with h5py.File(path, "w") as file:
        file["x"] = (smooth + 1j * smooth[..., ::-1]).astype("c8") if complex_ else (0.5 + smooth).astype("f4")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_setups_run_small(name: str, cli: Cli, tmp_path: Path) -> None:
    assert setups() == sorted(SMALL)
    size = 16 if name == "fastmri-knee" else 64
    data = images(tmp_path / "x.h5", size, name == "fastmri-knee")
    prior = "mr-complex-128" if name == "fastmri-knee" else "gaussian-field"
    case = {"dm4ct": "20-views", "inverse-scattering": "60-receivers", "fastmri-knee": "8x"}[name]
    call = [
        "bench",
        "leaderboard",
        name,
        "-o",
        tmp_path / "out",
        "--data",
        data,
        "--prior",
        prior,
        "--only",
        f"case={case}",
    ]
    for change in [f"variables.size={size}", METHODS, *SMALL[name]]:
        call += ["--set", change]
    call += ["--plugin", SCATTERING] if name == "inverse-scattering" else []
    code, out, err = cli(*call, "--json")
    assert code == 0, err
    rows = {row["method"]: row for row in json.loads(out)}
    assert set(rows) == {"mmps", "red-diff"}
    assert {row["case"] for row in rows.values()} == {case}
    for row in rows.values():
        assert {"psnr", "ssim", "evaluations", "seconds"} <= set(row)
        assert row["evaluations"] >= 4
    assert 0 < rows["mmps"]["coverage_90"] <= 1
    assert "coverage_90" not in rows["red-diff"]


def test_a_set_up_that_is_there_is_kept_and_an_unknown_one_refused(tmp_path: Path) -> None:
    file = write_setup("dm4ct", tmp_path)
    file.write_text("mine")
    assert write_setup("dm4ct", tmp_path).read_text() == "mine"
    with pytest.raises(invsolve.UserError, match="dm4ct"):
        write_setup("dm4c", tmp_path)
