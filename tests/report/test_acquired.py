"""The picture of an acquisition: still, animated, and a page with a slider that runs no script of the data's."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import invsolve
from tests.support.acquisition import SIGMA, Columns, bench
from tests.support.browser import Browser, find_browser
from tests.support.types import Cli

HOSTILE = "<img src=x onerror=alert(1)>.h5"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "scan.session.h5"
    case = bench(Columns())
    run = invsolve.acquire(
        case.operator,
        case.prior,
        noise=invsolve.Gaussian(SIGMA),
        budget=6,
        at_once=2,
        particles=4,
        file=path,
        strategy=invsolve.strategy("dds", steps=4),
    )
    for _ in run.rounds(case.measure):
        pass
    with h5py.File(path) as file:
        assert file["history/told"][:].tolist() == [0, 2, 4]
        assert file["history/mean"].shape == (3, 1, 12, 12)
        scores = file["history/scores"][:]
    # What was chosen first is what was worth most.
    assert int(np.argmax(scores[0])) == run.acquired[0]
    return path


def test_a_picture_shows_the_mask_of_each_moment(session: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("report", session, "-o", tmp_path / "run.png")[0] == 0
    assert cli("report", session, "-o", tmp_path / "run.apng")[0] == 0
    with h5py.File(session) as file:
        sequence = file["sequence"][:].tolist()
    with Image.open(tmp_path / "run.apng") as movie:
        assert movie.n_frames == 3  # type: ignore[attr-defined]
        for frame, told in enumerate((0, 2, 4)):
            movie.seek(frame)
            row = np.asarray(movie.convert("RGB"))[100, 8:200].reshape(12, 16, 3)[:, 8]
            assert np.flatnonzero((row != (24, 26, 38)).any(1)).tolist() == sorted(sequence[:told])
    with Image.open(tmp_path / "run.png") as still:
        assert still.height > 3 * 192
    code, _, err = cli("report", session, "-o", tmp_path / "run.jpg")
    assert (code, ".png or .html or .apng" in err) == (2, True)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium")
def test_the_page_has_a_slider_and_runs_nothing_of_the_data(session: Path, tmp_path: Path, cli: Cli) -> None:
    hostile = tmp_path / HOSTILE
    shutil.copy(session, hostile)
    with h5py.File(hostile, "a") as file:
        file.attrs["settings"] = '{"policy": {"name": "</script><script>alert(2)</script>"}}'
    assert cli("report", hostile, "-o", tmp_path / "run.html")[0] == 0
    with Browser((1000, 700)) as page:
        page.open(tmp_path / "run.html")
        assert page.run("document.getElementById('time').max") == "2"
        shown = []
        for k in range(3):
            page.run(
                f"const s{k} = document.getElementById('time'); s{k}.value = {k}; s{k}.dispatchEvent(new Event('input'))"
            )
            page.wait(
                "document.getElementById('frame').complete && document.getElementById('frame').naturalWidth > 500"
            )
            shown.append(
                (
                    page.run("document.getElementById('told').textContent"),
                    page.run("document.getElementById('frame').src"),
                )
            )
        assert [text.split(" groups")[0] for text, _ in shown] == ["0", "2", "4"]
        assert len({source for _, source in shown}) == 3
        assert page.run("document.querySelector('h1').textContent") == HOSTILE
        assert page.run("document.querySelectorAll('script').length") == 2
        assert page.run("document.querySelectorAll('img').length") == 1
        assert not page.complaints
        assert all(r.startswith(("file:", "data:")) for r in page.requests)
