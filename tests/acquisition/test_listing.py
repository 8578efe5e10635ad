"""The list of what was measured: the coordinates of groups against values by hand, its files, and files that are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.contracts.maskable import MaskableOperator
from invsolve.errors import UserError
from tests.support.acquisition import SIGMA, Columns, bench
from tests.support.types import Cli, narrow, offered

COLUMNS = [1, 0, 1, 1, 0, 1, 1, 0]


def coordinates(operator: Any) -> dict[str, list[float]]:
    maskable = narrow(MaskableOperator, operator)
    return {name: values.tolist() for name, values in maskable.group_coordinates().items()}


def test_cartesian_lines_have_their_index_and_their_frequency() -> None:
    # The middle of 8 columns is column 4, of 5 rows row 2.
    lines = invsolve.operator("mri", image_size=[5, 8], mask=COLUMNS)
    expected = {"column": [0, 2, 3, 5, 6], "k_column": [-4, -2, -1, 1, 2]}
    assert coordinates(lines) == expected
    # What is left of a mask is a mask, whose groups are numbered anew.
    kept = narrow(MaskableOperator, lines).restricted(torch.tensor([True, False] * 2 + [True]))
    assert coordinates(kept) == {"column": [0, 3, 6], "k_column": [-4, -1, 2]}
    assert coordinates(2.0 * lines) == expected
    points = invsolve.operator("mri", mask=[[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert coordinates(points) == {"row": [0, 2, 4], "column": [1, 0, 2], "k_row": [-2, 0, 2], "k_column": [0, -1, 1]}
    one = invsolve.operator("mri", image_size=[5, 8], mask=[0, 0, 0, 0, 0, 0, 1, 0])
    assert coordinates(one) == {"column": [6], "k_column": [2]}


def test_frames_have_a_number_and_no_frequency() -> None:
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])[:, None]
    cine = invsolve.operator("mri-cine", mask=mask, image_size=[2, 3, 4])
    assert coordinates(cine) == {"frame": [0, 0, 1], "column": [0, 3, 1], "k_column": [-2, 1, -1]}


def test_spokes_have_ends_and_an_angle_and_samples_a_place() -> None:
    # Rows run downwards, angles anticlockwise: from below to above is 90 degrees.
    spokes = torch.tensor([[[3.0, 0.0], [-3.0, 0.0]], [[0.0, -2.0], [0.0, 2.0]], [[-1.0, -1.0], [1.0, 1.0]]])
    found = coordinates(invsolve.operator("mri-noncartesian", image_size=8, trajectory=spokes))
    assert found.pop("angle") == pytest.approx([90, 0, 315], abs=1e-12)
    assert found == {
        "k_row_first": [3, 0, -1],
        "k_column_first": [0, -2, -1],
        "k_row_last": [-3, 0, 1],
        "k_column_last": [0, 2, 1],
    }
    samples = invsolve.operator("mri-noncartesian", image_size=8, trajectory=[[0.5, -1.0], [2.0, 3.0]])
    assert coordinates(samples) == {"k_row": [0.5, 2.0], "k_column": [-1.0, 3.0]}
    # The golden angle is 180 degrees over the golden ratio.
    golden = coordinates(invsolve.operator("mri-noncartesian", image_size=8, trajectory="golden", spokes=3))
    step = 180 / ((1 + 5**0.5) / 2)
    assert np.diff(golden["angle"]) % 360 == pytest.approx([step, step])


def test_views_pixels_patterns_and_stacks() -> None:
    angles = [0.0, 17.0, 45.0, 90.0, 133.3]
    ct = offered(invsolve.operator("ct", image_size=6, angles=angles))
    assert coordinates(ct)["angle"] == pytest.approx(angles)
    pixels = invsolve.operator("inpainting", mask=[[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert coordinates(pixels) == {"row": [0, 0, 2], "column": [0, 2, 1]}
    assert coordinates(invsolve.operator("compressive", image_size=4, fraction=0.5)) == {}
    assert coordinates(Columns(3)) == {"axis_-1": [0, 1, 2]}
    both = invsolve.stack([ct, invsolve.operator("inpainting", mask=[[1] + [0] * 5] * 6)])
    found = coordinates(both)
    assert found["part"] == [0] * 5 + [1] * 6
    assert found["angle"][:5] == pytest.approx(angles)
    assert np.isnan(found["angle"][5:]).all()
    assert found["row"][5:] == list(range(6))
    # Groups of the user's own: of several views, their mean.
    ct.group_index = torch.tensor([0, 0, 1, 1, -1])[:, None]
    assert coordinates(ct)["angle"] == [8.5, 67.5]


@pytest.fixture
def session(tmp_path: Path) -> invsolve.Session:
    case = bench(Columns())
    file = tmp_path / "run.session.h5"
    run = invsolve.acquire(
        case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), policy="centre-out", budget=5, at_once=2, file=file
    )
    run.tell([3], case.measure([3]))
    # From the middle of 12 outwards, to the left and to the right by turns.
    run.tell(run.ask(), case.measure([6, 5]))
    return run


def test_a_list_has_the_order_of_acquisition(session: invsolve.Session) -> None:
    assert session.lines() == [
        {"order": 0, "round": 0, "group": 3, "axis_-1": 3},
        {"order": 1, "round": 1, "group": 6, "axis_-1": 6},
        {"order": 2, "round": 1, "group": 5, "axis_-1": 5},
    ]


def test_a_session_that_still_runs_is_written_as_a_list(session: invsolve.Session, tmp_path: Path, cli: Cli) -> None:
    file, rows = tmp_path / "run.session.h5", [[0, 0, 3, 3], [1, 1, 6, 6], [2, 1, 5, 5]]
    for ending in ("csv", "txt", "npy", "npz"):
        assert cli("report", file, "-o", tmp_path / f"lines.{ending}")[0] == 0
        session.write_lines(tmp_path / f"same.{ending}")
        assert (tmp_path / f"lines.{ending}").read_bytes() == (tmp_path / f"same.{ending}").read_bytes()
    text = (tmp_path / "lines.csv").read_text()
    assert text == "order,round,group,axis_-1\n0,0,3,3\n1,1,6,6\n2,1,5,5\n"
    assert (tmp_path / "lines.txt").read_text().startswith("# order round group axis_-1\n0 0 3 3\n")
    assert np.loadtxt(tmp_path / "lines.txt").tolist() == rows
    mask = np.load(tmp_path / "lines.npy")
    assert (mask.dtype, mask.shape) == (np.bool_, (1, 12, 12))
    assert np.flatnonzero(mask[0, 7]).tolist() == [3, 5, 6]
    with np.load(tmp_path / "lines.npz") as arrays:
        assert np.stack([arrays[n] for n in ("order", "round", "group", "axis_-1")], 1).tolist() == rows
        assert arrays["acquired_at"].tolist() == [-1, -1, -1, 0, -1, 1, 1, -1, -1, -1, -1, -1]
        assert (arrays["mask"] == mask).all()
    code, _, err = cli("report", file, "-o", tmp_path / "lines.csv")
    assert (code, "--overwrite" in err) == (2, True)
    with pytest.raises(UserError, match=r"must end in \.csv"):
        session.write_lines(tmp_path / "lines.xlsx")


def test_a_damaged_session_is_refused_in_one_line(session: invsolve.Session, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "run.session.h5"

    def name(part: h5py.File) -> None:
        part["group_coordinates/=cmd|'calc'"] = np.zeros(12)

    def short(part: h5py.File) -> None:
        del part["group_coordinates/axis_-1"]
        part["group_coordinates/axis_-1"] = np.zeros(3)

    def beyond(part: h5py.File) -> None:
        part["sequence"][0] = 40

    whole = file.read_bytes()
    for damage in (name, short, beyond):
        file.write_bytes(whole)
        with h5py.File(file, "a") as part:
            damage(part)
        code, _, err = cli("report", file, "-o", tmp_path / "bad.csv")
        assert (code, err.count("\n"), "do not fit" in err) == (2, 1, True), damage.__name__
        assert not (tmp_path / "bad.csv").exists()
