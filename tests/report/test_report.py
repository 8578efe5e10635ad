"""What goes into a report: the code of the pictures, the size, figures, residuals, judgements; and its command."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import invsolve
from invsolve.api.provenance import operator_record
from invsolve.contracts.noise import Gaussian
from invsolve.datasets import hdf5
from invsolve.datasets.layouts.own import OwnLayout
from invsolve.errors import UserError
from invsolve.jobs.evaluation import evaluate_file
from invsolve.jobs.origin import find_scan, noise_of, open_scan
from invsolve.report import write_report
from invsolve.report.budget import Plan, describe, ladder
from invsolve.report.encode import encode, shrink, to_json
from invsolve.report.record import judged, strategy_of
from invsolve.report.residual import standardised
from tests.support.results import CONFIG, images, write_result
from tests.support.volumes import PRIOR


def decoded(data: bytes, rows: int, columns: int, low: float, step: float) -> np.ndarray:
    """The picture, pixel by pixel, as Weinberger 2000 (eq. 1) writes the prediction."""
    raw = zlib.decompress(data)
    count = rows * columns
    codes = np.zeros((rows, columns), int)
    for i in range(count):
        folded = sum(raw[p * count + i] << 8 * p for p in range(len(raw) // count))
        difference = folded // 2 if folded % 2 == 0 else -(folded + 1) // 2
        r, c = divmod(i, columns)
        a = codes[r, c - 1] if c else 0
        b = codes[r - 1, c] if r else 0
        d = codes[r - 1, c - 1] if r and c else 0
        predicted = min(a, b) if d >= max(a, b) else max(a, b) if d <= min(a, b) else a + b - d
        codes[r, c] = predicted + difference
    return np.where(codes > 0, low + (codes - 1) * step, np.nan)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
@pytest.mark.parametrize("shape", [(1, 17), (13, 1), (9, 11)])
def test_pictures_come_back_to_half_a_step(shape: tuple[int, int], scale: float) -> None:
    picture = scale * np.random.default_rng(0).normal(size=shape)
    picture.flat[3] = np.nan
    low, step, data = encode(picture, scale / 50)
    assert step == scale / 50
    back = decoded(data, *shape, low, step)
    np.testing.assert_allclose(back, picture, atol=0.5001 * step)


def test_a_step_that_sixteen_bits_do_not_reach_is_made_larger() -> None:
    picture = np.array([[-1e6, 1e6], [0.0, 0.1]])
    low, step, data = encode(picture, 1e-3)
    assert step == pytest.approx(2e6 / 65533)
    np.testing.assert_allclose(decoded(data, 2, 2, low, step), picture, atol=0.501 * step)
    # A constant picture, and one without a number.
    assert (decoded(encode(np.full((2, 2), 5.0), 0.0)[2], 2, 2, 5.0, 1.0) == 5).all()
    assert np.isnan(decoded(encode(np.full((2, 2), np.nan), 1.0)[2], 2, 2, 0.0, 1.0)).all()


def test_shrunk_pictures_are_means_of_blocks() -> None:
    picture = np.arange(20.0).reshape(4, 5)
    # The last column stands for the one that is missing.
    np.testing.assert_array_equal(shrink(picture, 2), [[3, 5, 6.5], [13, 15, 16.5]])
    np.testing.assert_array_equal(shrink(np.arange(6.0)[None], 3), [[1, 4]])


def test_json_in_a_page_cannot_end_its_element() -> None:
    text = to_json({"</script>": ["<!--", float("nan"), np.float32(0.5), "&"]})
    assert not set("<>&") & set(text)
    assert text.endswith('null,0.5,"\\u0026"]}')


def test_plans_lose_samples_first_and_slices_last() -> None:
    plans = list(ladder(8, (256, 256), 1000, (0.1, 1.0, 2.0)))
    assert plans[0] == Plan(0.1, 8)
    assert [p.pixels for p in plans] == sorted(p.pixels for p in plans)
    assert [p.stride for p in plans] == sorted(p.stride for p in plans)
    assert {p.pixels for p in plans} == {1, 2}
    assert plans[-1].stride >= 500
    text = " ".join(describe(Plan(2.0, 2, 8, 1, 2, 2), 8, 40, (256, 200), "HU", 20.0))
    assert "2 of 8 samples are kept" in text
    assert "every 8th slice" in text
    assert (
        "Truth, error and linear baseline, standard deviation and samples are reduced from 256 x 200 to 128 x 100"
        in text
    )


@pytest.mark.parametrize("megabytes", [0.6, 0.3])
def test_pages_keep_to_their_size_and_say_how(megabytes: float, tmp_path: Path) -> None:
    recon = write_result(tmp_path / "recon.h5", items=12, shape=(1, 200, 200))
    write_report(recon, tmp_path / "page.html", megabytes=megabytes)
    assert (tmp_path / "page.html").stat().st_size <= megabytes * 1e6
    text = (tmp_path / "page.html").read_text()
    assert "reduced from 200 x 200" in text
    assert "Samples are kept at every" in text
    # All of the file counts in the metrics, whatever of it is shown.
    assert f"<td>{evaluate_file(recon, None, None)['mean']['psnr']:.2f}</td>" in text


def test_a_page_that_cannot_be_so_small_is_refused(tmp_path: Path) -> None:
    recon = write_result(tmp_path / "recon.h5")
    with pytest.raises(UserError, match=r"give --megabytes 0\.\d"):
        write_report(recon, tmp_path / "page.html", megabytes=0.05)
    assert [p.name for p in tmp_path.iterdir()] == ["recon.h5"]


def scan_of(tmp_path: Path, name: str, **parameters: object) -> tuple[Path, torch.Tensor]:
    """A scan of known images with noise of 2, and the images."""
    truth = images(3, (1, 32, 32))
    forward = invsolve.operator(name, **parameters)
    y = invsolve.simulate(truth, forward, Gaussian(2.0), seed=0)
    hdf5.write_scan(tmp_path / "scan.h5", y, forward, Gaussian(2.0))
    return tmp_path / "scan.h5", truth


@pytest.mark.parametrize(
    ("name", "parameters", "signed"),
    [
        ("inpainting", {"fraction": 0.5, "image_size": 32}, True),
        ("ct", {"image_size": 32, "angles": 300}, True),
        ("mri", {"mask": [True, False] * 16}, False),
    ],
)
def test_the_truth_leaves_a_residual_of_one(name: str, parameters: dict, signed: bool, tmp_path: Path) -> None:
    scan, truth = scan_of(tmp_path, name, **parameters)
    record = operator_record(OwnLayout().open(scan, invsolve.make).operator)
    recon = write_result(tmp_path / "recon.h5", items=3, shape=(1, 32, 32), config=CONFIG | {"operator": record})
    measured = open_scan(scan, hdf5.read_result(recon))
    residual = standardised(measured, truth[1], 1)
    assert (residual.signed, residual.relative) == (signed, True)
    picture = residual.picture
    assert max(picture.shape) <= 128
    known = picture[np.isfinite(picture)]
    # The root mean square of so many independent draws of deviation 1.
    assert np.sqrt(np.mean(known**2)) == pytest.approx(1.0, abs=4 / np.sqrt(2 * known.size))
    assert (known.size < picture.size) == (name != "ct")
    # Without a noise to compare with, it is in units of y.
    bare = standardised(dataclasses.replace(measured, noise=None), truth[1], 1)
    assert not bare.relative
    np.testing.assert_allclose(bare.picture, 2 * picture, rtol=1e-5)


def test_the_scan_is_found_where_it_was_and_no_other_is_taken(tmp_path: Path, cli: Callable) -> None:
    scan, _ = scan_of(tmp_path, "inpainting", fraction=0.5, image_size=32)
    measurement = OwnLayout().open(scan, invsolve.make)
    entry = {
        "input": {"file": str(scan), "fingerprint": measurement.fingerprint},
        "operator": operator_record(measurement.operator),
    }
    recon = write_result(tmp_path / "recon.h5", items=3, shape=(1, 32, 32), config=CONFIG | entry)
    result = hdf5.read_result(recon)
    assert find_scan(result).measurement is not None
    assert find_scan(result).noise == Gaussian(2.0)
    other = scan.rename(tmp_path / "moved.h5")
    assert "--scan" in find_scan(result).why
    assert open_scan(other, result).measurement is not None
    changed = dataclasses.replace(result, config=result.config | {"operator": CONFIG["operator"]})
    assert "reads as another" in open_scan(other, changed).why
    assert find_scan(result).measurement is None
    (tmp_path / "second").mkdir()
    wrong, _ = scan_of(tmp_path / "second", "inpainting", fraction=0.25, image_size=32)
    code, _, err = cli("report", recon, "-o", tmp_path / "page.html", "--scan", wrong)
    assert code == 2
    assert "is not the scan" in err
    assert not (tmp_path / "page.html").exists()


def test_a_file_alone_is_judged_as_the_run_was(images: Path, tmp_path: Path, cli: Callable) -> None:
    (tmp_path / "small.py").write_text(PRIOR)
    scan, recon = tmp_path / "scan.h5", tmp_path / "recon.h5"
    cli("simulate", images, "-o", scan, "--operator", "inpainting", "--set", "fraction=0.5", "--noise", "gaussian:0.05")
    # The noise is said to be five times too small.
    options = ("--prior", "small", "--plugin", tmp_path / "small.py", "--strategy", "dps-fitted", "--set", "steps=20")
    code, _, err = cli("reconstruct", scan, "-o", recon, *options, "--samples", 2, "--noise", "gaussian:0.01")
    assert code == 0, err
    (line,) = [
        text.removeprefix("invsolve: warning: ") for text in err.splitlines() if ": warning: the samples" in text
    ]
    result = hdf5.read_result(recon)
    judgement = judged(result.diagnostics, result.config)
    assert judgement is not None
    assert judgement.warning == line
    assert "--noise gaussian:" in line
    code, _, err = cli("report", recon, "-o", tmp_path / "page.html")
    assert code == 0, err
    text = (tmp_path / "page.html").read_text()
    assert f'<p class="warning">{line[0].upper()}{line[1:]}.</p>'.replace("'", "&#x27;") in text
    assert '["residual",' in text


def test_records_that_say_little_are_taken_as_they_are(tmp_path: Path) -> None:
    assert strategy_of({"strategy": {"name": "of another", "parameters": {}}}) is None
    assert noise_of({"noise": {"name": "gaussian", "sigma": {"shape": [9], "sha256": "00"}}}) is None
    recon = write_result(tmp_path / "recon.h5", config={"strategy": {"name": "of another"}}, ratio=2.0)
    write_report(recon, tmp_path / "page.html")
    assert "Residual of the samples 2.00" in (tmp_path / "page.html").read_text()


def test_an_unfinished_result_is_shown_as_one(tmp_path: Path) -> None:
    recon = write_result(tmp_path / "recon.h5", done=2)
    write_report(recon, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "This result is not finished: 2 items are done." in text
    assert text.count('id="frame-') == 2


def test_the_command_shows_what_is_asked_for(tmp_path: Path, cli: Callable) -> None:
    recon = write_result(tmp_path / "recon.h5")
    page = tmp_path / "page.html"
    assert cli("report", recon, "-o", page, "--item", 3, "--item", 1)[0] == 0
    assert '"items":[3,1]' in page.read_text()
    assert cli("report", recon, "-o", tmp_path / "sheet.png")[0] == 0
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    for arguments, text in (
        (("-o", page), "--overwrite"),
        (("-o", tmp_path / "page.pdf"), ".html"),
        (("-o", tmp_path / "other.html", "--item", 5), "items 0..4"),
        (("-o", tmp_path / "none" / "page.html"), "cannot be written"),
    ):
        code, _, err = cli("report", recon, *arguments)
        assert code == 2
        assert text in err
        assert len(err.strip().splitlines()) == 1


def test_a_point_estimate_has_no_coverage_even_where_its_strategy_is_not_installed(tmp_path: Path) -> None:
    unknown = {**CONFIG, "strategy": {"name": "somebody-elses", "parameters": {}}}
    point = write_result(tmp_path / "point.h5", config={**unknown, "draws": False})
    drawn = write_result(tmp_path / "drawn.h5", config={**unknown, "draws": True})
    assert "coverage_90" not in evaluate_file(point, None, None)["mean"]
    # Truth and samples are draws from one distribution there: 9 in 10, give or take the number of pixels.
    assert evaluate_file(drawn, None, None)["mean"]["coverage_90"] == pytest.approx(0.9, abs=0.05)
    write_report(point, tmp_path / "point.html")
    page = (tmp_path / "point.html").read_text()
    assert "interval</th>" not in page
    assert '"all":[]' in page.split('"coverage":')[1]
    assert "somebody-elses finds one image" in page
