"""The HTML report in a real browser: slices, window, profiles, zoom, samples; no error, no network, no injected script."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.image import imread

import invsolve
from invsolve.api.provenance import operator_record
from invsolve.datasets import hdf5
from invsolve.datasets.layouts.own import OwnLayout
from invsolve.jobs.origin import Measured
from invsolve.report import write_report
from invsolve.report.page import write_page
from tests.support.browser import Browser, find_browser
from tests.support.results import CONFIG, images, write_result

if find_browser() is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(running: Browser) -> Iterator[Browser]:
    """The browser; at the end of a test the page must not have complained, nor asked for anything."""
    running.complaints.clear()
    running.requests.clear()
    yield running
    assert running.complaints == []
    assert [r for r in running.requests if not r.startswith(("file:", "data:"))] == []


def open_page(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait("'shown' in document.body.dataset")


def picture(browser: Browser, name: str) -> np.ndarray:
    """What is on the canvas of a panel, (rows, columns, RGBA)."""
    url = browser.run(f"document.querySelector('[data-name={name}] canvas').toDataURL('image/png')")
    data = base64.b64decode(url.partition(",")[2])
    return np.round(255 * imread(io.BytesIO(data), format="png")).astype(np.uint8)


def said(browser: Browser, selector: str) -> str:
    text: str = browser.run(f"document.querySelector({selector!r}).textContent")
    return text.replace("−", "-")


def choose(browser: Browser, name: str, value: str) -> None:
    """Give a control a value, as choosing it does."""
    browser.run(
        f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; e.dispatchEvent(new Event('change')); }})()"
    )


def number(browser: Browser, panel: str) -> float:
    return float(said(browser, f"[data-name={panel}] .value").split()[0])


@pytest.fixture
def page(tmp_path: Path) -> Path:
    recon = write_result(tmp_path / "recon.h5")
    write_report(recon, tmp_path / "report.html")
    return tmp_path / "report.html"


def test_slices_change_every_picture(page: Path, browser: Browser) -> None:
    open_page(browser, page)
    names = ("mean", "std", "sample", "truth", "error", "linear")
    assert browser.run("document.querySelectorAll('#pictures figure').length") == len(names)
    before = {name: picture(browser, name) for name in names}
    # The slider itself: a click near its right end.
    browser.click("#slice", 0.98)
    browser.wait("document.body.dataset.shown === '4'")
    for name in names:
        assert (picture(browser, name) != before[name]).mean() > 0.05, name
    assert said(browser, "#which") == "5 of 5 · item 4"
    browser.key("ArrowLeft")
    browser.wait("document.body.dataset.shown === '3'")
    browser.key("Home")
    browser.wait("document.body.dataset.shown === '0'")
    browser.click("#next")
    browser.wait("document.body.dataset.shown === '1'")


def test_values_are_those_of_the_file(page: Path, browser: Browser) -> None:
    result = hdf5.read_result(page.with_name("recon.h5"))
    mean, std, truth = (rows[2:3][0, 0] for rows in (result.mean, result.std, result.truth))
    step = float(browser_meta(page)["step"])
    open_page(browser, page)
    rows, columns = mean.shape
    for row, column in ((0, 0), (17, 31), (rows - 1, columns - 1)):
        browser.click("[data-name=mean] canvas", (column + 0.5) / columns, (row + 0.5) / rows)
        assert said(browser, "#here").startswith(f"row {row}, column {column}: ")
        # Rounded to the step, and printed to at least as many digits.
        assert abs(number(browser, "mean") - float(mean[row, column])) <= step
        assert abs(number(browser, "std") - float(std[row, column])) <= step
        assert abs(number(browser, "truth") - float(truth[row, column])) <= step
        assert abs(number(browser, "error") - abs(float(mean[row, column] - truth[row, column]))) <= 1.5 * step
        assert said(browser, "#row-title") == f"Along row {row}"


def browser_meta(page: Path) -> dict:
    block = re.search(r'id="meta">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert block
    return json.loads(block[1])


def test_grey_values_follow_the_window(page: Path, browser: Browser) -> None:
    mean = hdf5.read_result(page.with_name("recon.h5")).mean[2:3][0, 0].numpy()
    open_page(browser, page)
    choose(browser, "preset", "Lung")
    # Level -600, width 1500: black at -1350, white at 150. The cross covers the middle row and column.
    shown = picture(browser, "mean")[..., 0].astype(float)
    high, wide = shown.shape
    rows = ((np.arange(48) + 0.5) * high / 48).astype(int)
    columns = ((np.arange(40) + 0.5) * wide / 40).astype(int)
    expected = np.clip((mean + 1350) / 1500, 0, 1) * 255
    apart = np.abs(shown[rows][:, columns] - expected)
    apart[24], apart[:, 20] = 0, 0
    assert apart.max() < 2
    choose(browser, "width-number", "100")
    assert browser.run("document.getElementById('preset').value") == ""
    assert (picture(browser, "mean")[..., 0] != shown).mean() > 0.3
    width = browser.run("document.getElementById('width').valueAsNumber")
    browser.drag("[data-name=truth] canvas", (0.2, 0.5), (0.8, 0.5))
    assert browser.run("document.getElementById('width').valueAsNumber") > 1.2 * width
    # The point stays where it was.
    assert said(browser, "#row-title") == "Along row 24"
    assert said(browser, "#column-title") == "Along column 20"


def test_profiles_zoom_and_samples(page: Path, browser: Browser) -> None:
    open_page(browser, page)
    path = "document.querySelector('#row-chart .line.mean').getAttribute('d')"
    before, whole = browser.run(path), picture(browser, "mean")
    browser.click("[data-name=std] canvas", 0.3, 0.2)
    assert browser.run(path) != before
    assert browser.run("document.querySelectorAll('#column-chart .band').length") == 1
    assert browser.run("document.querySelectorAll('#column-chart .line.truth').length") == 1
    # The baseline's line is asked for.
    assert browser.run("document.querySelectorAll('#row-chart .line.linear').length") == 0
    browser.click("#legend .linear")
    assert browser.run("document.querySelectorAll('#row-chart .line.linear').length") == 1
    browser.key("+")
    assert said(browser, "#zoom") == "2×"
    assert (picture(browser, "mean") != whole).mean() > 0.2
    first = picture(browser, "sample")
    browser.click("#sample-next")
    assert "2 of 4" in said(browser, "[data-name=sample] .name")
    assert (picture(browser, "sample") != first).mean() > 0.1
    browser.key("s")
    assert "3 of 4" in said(browser, "[data-name=sample] .name")


def test_metrics_coverage_and_provenance_are_there(page: Path, browser: Browser, cli: Callable) -> None:
    scores = json.loads(cli("evaluate", page.with_name("recon.h5"), "--json")[1])
    open_page(browser, page)
    assert said(browser, "tbody td") == f"{scores['mean']['psnr']:.2f}"
    assert said(browser, "#now-psnr") == f"{scores['items'][2]['psnr']:.2f}"
    assert said(browser, "#now-coverage_90") == f"{scores['items'][2]['coverage_90']:.3f}"
    levels = browser_meta(page)["coverage"]
    assert levels["all"][levels["levels"].index(0.9)] == pytest.approx(scores["mean"]["coverage_90"])
    assert browser.run("document.querySelectorAll('#coverage-chart .line').length") == 3
    assert browser.run("document.querySelectorAll('#by-item-chart .dot').length") == 5
    assert browser.run("document.querySelectorAll('#by-step-chart .line').length") == 1
    facts = said(browser, "dl")
    for text in ("invsolve reconstruct scan.h5", "gaussian, sigma 2", "dps, steps 40", "ct-128", "seed 7", "sha256:"):
        assert text in facts


def test_the_residual_has_a_picture_of_its_own(tmp_path: Path, browser: Browser) -> None:
    truth, forward = images(2, (1, 32, 32)), invsolve.operator("ct", image_size=32, angles=20)
    y = invsolve.simulate(truth, forward, invsolve.Gaussian(2.0), seed=0)
    hdf5.write_scan(tmp_path / "scan.h5", y, forward, invsolve.Gaussian(2.0))
    scan = OwnLayout().open(tmp_path / "scan.h5", invsolve.make)
    entry = {"input": {"file": "scan.h5", "fingerprint": scan.fingerprint}, "operator": operator_record(scan.operator)}
    recon = write_result(tmp_path / "recon.h5", items=2, shape=(1, 32, 32), config=CONFIG | entry)
    # Found beside the result.
    write_report(recon, tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    assert said(browser, "[data-name=residual] .name") == "Data - A(mean), in noise σ"
    before = picture(browser, "residual")
    assert before.shape[0] / before.shape[1] == pytest.approx(y.shape[-2] / y.shape[-1], abs=0.02)
    browser.click("[data-name=residual] canvas", 0.2, 0.2)
    browser.key("+")
    assert (picture(browser, "residual") == before).all()
    browser.click("#previous")
    browser.wait("document.body.dataset.shown === '0'")
    assert (picture(browser, "residual") != before).mean() > 0.1


@pytest.mark.parametrize("kind", ["signal", "volume", "complex", "one sample", "constant", "no truth"])
def test_results_of_every_kind(kind: str, tmp_path: Path, browser: Browser) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "signal": {"shape": (1, 64)},
        "volume": {"shape": (1, 6, 24, 24), "items": 2},
        "complex": {"shape": (2, 24, 24)},
        "one sample": {"samples": 1},
        "constant": {"items": 1, "shape": (1, 12, 12), "samples": 1, "truth": False, "linear": False},
        "no truth": {"truth": False, "linear": False, "unit": ""},
    }
    options = kinds[kind]
    recon = write_result(tmp_path / "recon.h5", **options)
    if kind == "constant":
        with h5py.File(recon, "r+") as file:
            for name in ("mean", "samples"):
                file[name][...] = 5.0
    write_report(recon, tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    panels = browser.run("Array.from(document.querySelectorAll('#pictures figure'), (f) => f.dataset.name)")
    lines = browser.run("document.querySelectorAll('#row-chart .line.mean').length")
    assert lines == 1
    assert ("std" in panels) == (options.get("samples", 4) > 1)
    assert ("truth" in panels) == options.get("truth", True)
    text = browser.run("document.body.innerText")
    if kind == "one sample":
        assert "no uncertainty is known" in text
    if kind == "volume":
        assert said(browser, "#which") == "7 of 12 · item 1, slice 0"
    if kind == "signal":
        assert browser.run("document.getElementById('pictures').offsetHeight") == 0
        assert "SSIM" not in text
    if kind == "complex":
        result = hdf5.read_result(recon)
        value = float(result.mean[2:3][0][:, 12, 12].norm())
        assert number(browser, "mean") == pytest.approx(value, abs=2)
        spread = float(result.samples[2:3][0][:, :, 12, 12].norm(dim=1).std())
        assert number(browser, "std") == pytest.approx(spread, abs=2)
    if kind == "constant":
        assert number(browser, "mean") == 5


EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>{{meta}}"


def test_text_from_files_stays_text(tmp_path: Path, browser: Browser) -> None:
    config = CONFIG | {"command": EVIL, "notes": [EVIL], "operator": {"name": EVIL, "parameters": {EVIL: EVIL}}}
    config |= {
        "prior": {"name": EVIL, "source": EVIL},
        "strategy": {"name": EVIL},
        "input": {"file": EVIL, "fingerprint": EVIL},
    }
    recon = write_result(tmp_path / "a<img src=x onerror=window.hit=1>.h5", unit=EVIL, config=config)
    write_report(recon, tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    assert browser.run("window.hit === undefined")
    assert browser.run("document.querySelectorAll('img').length") == 0
    # Three of ours, and one a slice.
    assert browser.run("document.scripts.length") == 2 + 5
    assert browser.run("document.title").startswith("a<img src=x onerror=window.hit=1>.h5")
    assert browser.run("document.querySelector('dl').textContent.includes('</script><script>window.hit=1</script>')")


def test_the_policy_stops_scripts_and_requests(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = text.replace("<main>", "<main><script>window.hit=1</script><img src='http://127.0.0.1:9/x.png'>")
    page.write_text(text, encoding="utf-8")
    with Browser() as browser:
        open_page(browser, page)
        assert browser.run("window.hit === undefined")
        assert sum("Content Security Policy" in line for line in browser.complaints) >= 2
        assert not any(r.startswith("http") for r in browser.requests if "127.0.0.1" not in r)


class Made:
    """Rows that are computed when they are read."""

    def __init__(self, count: int, make: Callable[[int], torch.Tensor]) -> None:
        self.count, self.make = count, make
        self.shape = (count, *make(0).shape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        return torch.stack([self.make(i) for i in range(*rows.indices(self.count))])


@pytest.mark.slow
def test_256_slices_stay_below_20_megabytes(tmp_path: Path, browser: Browser) -> None:
    view = hdf5.read_result(write_result(tmp_path / "recon.h5"))
    count, size = 256, 256
    base = images(4, (1, size, size))
    grain = 25 * torch.randn(8, 1, size, size, generator=torch.Generator().manual_seed(5))

    def draws(i: int) -> torch.Tensor:
        return torch.stack([base[i % 4] + grain[(i + k) % 8] for k in range(4)])

    # Computed rows in the place of stored ones: the page reads both alike.
    computed: dict[str, Any] = {
        "mean": Made(count, lambda i: draws(i).mean(0)),
        "std": Made(count, lambda i: draws(i).std(0)),
        "samples": Made(count, draws),
        "truth": Made(count, lambda i: base[i % 4] + grain[(i + 5) % 8]),
        "linear": None,
        "diagnostics": {k: np.resize(v, (count, *v.shape[1:])) for k, v in view.diagnostics.items()},
        "items": list(range(count)),
        "input_items": count,
    }
    big = dataclasses.replace(view, **computed)
    page = tmp_path / "big.html"
    write_page(page, big, big.truth, range(count), Measured(None), 20.0)
    assert 5e6 < page.stat().st_size < 20e6
    open_page(browser, page)
    assert "reduced from 256 x 256" in browser.run("document.getElementById('about').textContent")
    before = picture(browser, "mean")
    browser.click("#slice", 0.99)
    browser.wait("document.body.dataset.shown !== '128'")
    assert int(browser.run("document.body.dataset.shown")) > 240
    assert (picture(browser, "mean") != before).mean() > 0.05
