"""Layouts "fastmri" and "ismrmrd": padding, oversampling, noise scans, reversed lines, maps; and what is refused."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.layouts.fastmri import FastMRI
from invsolve.datasets.layouts.ismrmrd import ISMRMRD
from invsolve.datasets.mri.header import parse_header
from invsolve.errors import UserError
from tests.support.mri_files import (
    COILS,
    COLUMNS,
    LARGEST,
    PHASE,
    READOUT,
    ROWS,
    SIGMA,
    SLICES,
    centred_fft,
    header,
    ismrmrd_lines,
    line,
    rss,
    scene,
    write_fastmri,
    write_lines,
)
from tests.support.types import offered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_fastmri(tmp_path / "volume.h5")


def test_oversampling_and_padding_are_no_measurements(path: Path) -> None:
    scan = FastMRI().open(path, invsolve.make)
    y = scan.y[0:2]
    assert y.shape == (SLICES, COILS, ROWS, PHASE)
    measured = torch.zeros(PHASE, dtype=torch.bool)
    measured[2 : 2 + LARGEST + 1] = True
    assert torch.equal(scan.operator.mask[0], measured)
    assert scan.region == ((0, ROWS), (5, 5 + COLUMNS))
    # Cutting the field of view along the readout leaves the images there as they were.
    whole = centred_fft(scene()[1].conj()).conj()[:, :, 16 : 16 + ROWS]
    assert np.allclose(centred_fft(y.numpy().conj()).conj(), whole, atol=1e-5)
    assert scan.noise.sigma == pytest.approx(SIGMA, rel=0.1)
    assert "readout of 64 points cut to 32" in " ".join(scan.notes)


def test_each_slice_has_its_own_maps_and_the_result_is_the_scanners(path: Path) -> None:
    scan = FastMRI().open(path, invsolve.make)
    assert not torch.equal(offered(scan.operator_for(0)).coil_maps, offered(scan.operator_for(1)).coil_maps)
    rec = invsolve.reconstruct(scan, strategy="linear")
    assert rec.mean.shape == (SLICES, 2, ROWS, COLUMNS)
    truth = scan.truth[0:2]
    assert truth.shape == (SLICES, 1, ROWS, COLUMNS)
    magnitude = rec.mean.norm(dim=1, keepdim=True)
    inside = truth > 0.2 * truth.max()
    for k in range(SLICES):
        error = (magnitude - truth)[k][inside[k]].norm() / truth[k][inside[k]].norm()
        assert float(error) < 0.03
    # The phase went into the maps: what is left is real.
    assert float(rec.mean[:, 1].norm()) < 0.1 * float(rec.mean[:, 0].norm())
    swapped = FastMRI(slices=[1, 2]).open(path, invsolve.make)
    # Of its own noise, which one slice tells a little differently, it would have another ridge.
    alone = invsolve.reconstruct(swapped, strategy="linear", noise=scan.noise)
    assert torch.allclose(alone.mean[0], rec.mean[1], atol=1e-4)


def test_the_mask_of_a_test_file_is_kept(tmp_path: Path) -> None:
    mask = np.zeros(PHASE, bool)
    mask[::3] = True
    mask[14:26] = True
    scan = FastMRI().open(write_fastmri(tmp_path / "test.h5", mask), invsolve.make)
    inside = mask.copy()
    inside[:2] = inside[2 + LARGEST + 1 :] = False
    assert np.array_equal(scan.operator.mask[0].numpy(), inside)
    assert scan.truth is None
    assert bool((scan.y[0:1][..., ~inside] == 0).all())
    assert "2 padded columns outside the encoding limits" in " ".join(scan.notes)


def test_single_coil_has_a_phase_map_or_none(path: Path) -> None:
    with h5py.File(path, "a") as file:
        kspace, target = file["kspace"][:, 0], file["reconstruction_rss"][:]
        del file["kspace"], file["reconstruction_rss"]
        file["kspace"], file["reconstruction_esc"] = kspace, target
    scan = FastMRI().open(path, invsolve.make)
    assert scan.y[0:1].shape == (1, 1, ROWS, PHASE)
    assert torch.allclose(scan.operator.coil_maps.abs(), torch.ones(1), atol=1e-5)
    plain = FastMRI(real=False).open(path, invsolve.make)
    assert not hasattr(plain.operator, "coil_maps")
    both = [invsolve.reconstruct(s, strategy="linear").mean.norm(dim=1) for s in (scan, plain)]
    inside = both[1] > 0.1 * both[1].max()
    assert torch.allclose(both[0][inside], both[1][inside], rtol=0.02)


def test_given_maps_are_used(path: Path) -> None:
    maps = torch.randn(COILS, ROWS, PHASE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    scan = FastMRI(coil_maps=maps, real=False).open(path, invsolve.make)
    assert torch.equal(offered(scan.operator).coil_maps, maps)
    each = torch.stack([maps, 2 * maps])
    assert torch.equal(
        offered(FastMRI(coil_maps=each, real=False).open(path, invsolve.make).operator_for(1)).coil_maps, 2 * maps
    )
    with h5py.File(path, "a") as file:
        file["sensitivity_maps"] = np.arange(SLICES * COILS * READOUT * PHASE).reshape(2, COILS, READOUT, PHASE) * 1j
    stored = FastMRI(real=False).open(path, invsolve.make)
    with h5py.File(path) as file:
        assert np.array_equal(stored.operator_for(1).coil_maps.numpy(), file["sensitivity_maps"][1, :, 16 : 16 + ROWS])
    with pytest.raises(UserError, match=r"volume\.h5: coil_maps .* expected complex \(4, 32, 40\)"):
        FastMRI(coil_maps=maps[:3]).open(path, invsolve.make)


def test_acceleration_thins_the_measured_columns(path: Path) -> None:
    scan = FastMRI(acceleration=3).open(path, invsolve.make)
    assert int(scan.operator.mask[0].sum()) == 12
    assert bool(scan.operator.mask[0][18:22].all())
    assert torch.equal(
        offered(FastMRI(acceleration=3).open(path, invsolve.make).operator).mask, offered(scan.operator).mask
    )
    assert not torch.equal(
        offered(FastMRI(acceleration=3, seed=1).open(path, invsolve.make).operator).mask,
        offered(scan.operator).mask,
    )
    assert (
        FastMRI(acceleration=3).open(path, invsolve.make).fingerprint
        != FastMRI(acceleration=4).open(path, invsolve.make).fingerprint
    )


def test_images_are_the_stored_reconstructions(path: Path, tmp_path: Path) -> None:
    with h5py.File(path) as file:
        assert np.array_equal(FastMRI().images(path).x[1:2][0, 0].numpy(), file["reconstruction_rss"][1])
    with pytest.raises(UserError, match="has no reconstruction_rss"):
        FastMRI().images(write_fastmri(tmp_path / "test.h5", np.ones(PHASE)))


def test_ismrmrd_is_read_by_several_threads(tmp_path: Path) -> None:
    # Two handles of such a file that overlap in time end the process (HDF5 2.0).
    path = write_lines(tmp_path / "raw.h5", ismrmrd_lines())
    scan = ISMRMRD().open(path, invsolve.make)
    alone = scan.y[0:1]
    with ThreadPoolExecutor(4) as threads:
        for k in threads.map(lambda _: scan.y[0:1], range(40)):
            torch.testing.assert_close(k, alone, rtol=0, atol=0)


def test_ismrmrd_puts_every_line_in_its_place(tmp_path: Path, path: Path) -> None:
    raw = write_lines(tmp_path / "raw.h5", ismrmrd_lines())
    before = raw.read_bytes()
    with h5py.File(raw) as file:
        assert ISMRMRD.recognises(file)
        assert not FastMRI.recognises(file)
    scan, other = ISMRMRD().open(raw, invsolve.make), FastMRI().open(path, invsolve.make)
    assert torch.allclose(scan.y[0:2], other.y[0:2], atol=1e-5)
    assert torch.equal(offered(scan.operator).mask, offered(other.operator).mask)
    assert scan.region == other.region
    assert np.allclose(rss(ISMRMRD(crop=False).open(raw, invsolve.make).y[0:2].numpy()), rss(scene()[1]), atol=1e-5)
    # Seven lines of 36 come twice, which halves the variance of their noise scans'.
    assert scan.noise.sigma == pytest.approx(SIGMA * (1 - 7 / 36 / 2) ** 0.5, rel=0.03)
    text = " | ".join(scan.notes)
    assert "from the noise scans" in text
    assert "2 images, told apart by slice" in text
    assert f"{LARGEST + 2} of" in text
    assert raw.read_bytes() == before


def test_calibration_lines_serve_the_maps_alone(tmp_path: Path) -> None:
    _, kspace = scene()
    lines = [line(kspace[0][:, :, 2 + s], s) for s in range(0, LARGEST + 1, 3)]
    lines += [line(kspace[0][:, :, 2 + s], s, flags=1 << 19) for s in range(8, 28)]
    scan = ISMRMRD().open(write_lines(tmp_path / "raw.h5", lines), invsolve.make)
    assert int(scan.operator.mask[0].sum()) == 12
    full = ISMRMRD().open(
        write_lines(tmp_path / "full.h5", [line(kspace[0][:, :, 2 + s], s) for s in range(LARGEST + 1)]),
        invsolve.make,
    )
    inside = scene()[0][0][16 : 16 + ROWS] > 0.3
    difference = (scan.operator.coil_maps - full.operator.coil_maps)[:, inside]
    assert float(difference.norm() / full.operator.coil_maps[:, inside].norm()) < 0.1
    with pytest.raises(UserError, match="too few to calibrate coil maps"):
        ISMRMRD().open(write_lines(tmp_path / "few.h5", lines[:12]), invsolve.make)


def test_averaged_lines_have_less_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    clean = scene()[1][0]
    noise = 0.1 * (rng.normal(size=(3, *clean.shape)) + 1j * rng.normal(size=(3, *clean.shape)))
    scans = line(0.1 * (rng.normal(size=(COILS, 4000)) + 1j * rng.normal(size=(COILS, 4000))), flags=1 << 18)
    lines = [scans]
    lines += [line((clean + n)[:, :, 2 + s], s) for s in range(LARGEST + 1) for n in noise]
    scan = ISMRMRD(crop=False, real=False).open(write_lines(tmp_path / "raw.h5", lines), invsolve.make)
    assert scan.noise.sigma == pytest.approx(0.1 / 3**0.5, rel=0.02)
    rest = scan.y[0:1][0].numpy() - clean
    measured = scan.operator.mask.numpy() != 0
    assert np.sqrt(np.mean(np.abs(rest[:, measured]) ** 2) / 2) == pytest.approx(0.1 / 3**0.5, rel=0.03)
    assert "lines that were measured 3 to 3 times are averaged" in scan.notes


def test_partial_echoes_are_masked(tmp_path: Path) -> None:
    _, kspace = scene()
    lines = [line(kspace[0][:, 12:, 2 + s], s, centre=READOUT // 2 - 12) for s in range(LARGEST + 1)]
    scan = ISMRMRD().open(write_lines(tmp_path / "raw.h5", lines), invsolve.make)
    assert scan.operator.mask[:12].sum() == 0
    assert bool(scan.operator.mask[12:, 2 : 2 + LARGEST + 1].all())
    assert torch.allclose(scan.y[0:1][0, :, 12:], torch.from_numpy(kspace[0][:, 12:]), atol=1e-5)


def _change(index: int, field: str, value: int) -> Callable[[list[np.ndarray]], None]:
    def harm(lines: list[np.ndarray]) -> None:
        target = lines[index]["head"]
        *groups, name = field.split(".")
        for group in groups:
            target = target[group]
        target[name] = value

    return harm


@pytest.mark.parametrize(
    ("harm", "xml", "options", "expected"),
    [
        (None, header(trajectory="spiral"), {}, "header says 'spiral', but its lines carry no trajectory"),
        (_change(5, "idx.kspace_encode_step_2", 1), None, {}, "of partition 1, outside the encoded matrix 64 x 40 x 1"),
        (_change(5, "idx.kspace_encode_step_1", 99), None, {}, "outside the encoded matrix 64 x 40"),
        (_change(5, "center_sample", 5), None, {}, "outside the encoded matrix 64 x 40"),
        (_change(5, "active_channels", 2), None, {}, "number of coils changes from line to line ([2, 4])"),
        (_change(5, "number_of_samples", 60), None, {}, "has 512 numbers, but its head says 4 coils x 60"),
        (_change(5, "trajectory_dimensions", 2), None, {}, "carry a trajectory"),
        (None, None, {"encoding": 1}, "has 1 encodings, none of number 1"),
        (None, None, {"group": "other"}, "has no ISMRMRD group 'other'; it has dataset"),
        (None, None, {"slices": [0, 9]}, "slices=[0, 9] must be [start, stop) within the 1 slices"),
        (None, "<not-xml", {}, "is no XML"),
        (None, "<ismrmrdHeader/>", {}, "has 0 encodings"),
    ],
)
def test_what_ismrmrd_refuses(
    tmp_path: Path,
    harm: Callable[[list[np.ndarray]], None] | None,
    xml: str | None,
    options: dict[str, Any],
    expected: str,
) -> None:
    _, kspace = scene()
    lines = [line(kspace[0][:, :, 2 + s], s) for s in range(LARGEST + 1)]
    if harm is not None:
        harm(lines)
    path = write_lines(tmp_path / "raw.h5", lines, xml)
    with pytest.raises(UserError) as caught:
        ISMRMRD(**options).open(path, invsolve.make).y[0:1]
    text = str(caught.value)
    assert expected in text
    assert "\n" not in text
    assert text.startswith(str(path))


def _replace(name: str, value: object) -> Callable[[h5py.File], object]:
    def harm(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return harm


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (_replace("kspace", np.ones((2, 4, 64, 40), np.float32)), "holds float32, expected complex numbers"),
        (_replace("kspace", np.ones((2, 64), np.complex64)), "expected (slices, coils, readout, phase)"),
        (_replace("kspace", None), "has no dataset 'kspace'"),
        (_replace("mask", np.ones(39)), "mask (39,) has 39 entries"),
        (_replace("mask", np.linspace(0, 1, 40)), "mask has values from"),
        (_replace("mask", np.full(40, np.nan)), "mask has 40 NaN or infinite entries"),
        (_replace("mask", np.zeros(40)), "no column of k-space is measured"),
        (_replace("coil_maps", np.ones((2, 3, 64, 40), np.complex64)), "does not fit kspace"),
        (_replace("ismrmrd_header", header().replace(">64<", ">many<").encode()), "matrixSize/x is 'many'"),
        (_replace("kspace", np.full((2, 4, 64, 40), np.nan, np.complex64)), "NaN or infinite values in slice 0"),
    ],
)
def test_what_fastmri_refuses(path: Path, harm: Callable[[h5py.File], object], expected: str) -> None:
    with h5py.File(path, "a") as file:
        harm(file)
    with pytest.raises(UserError) as caught:
        FastMRI().open(path, invsolve.make)
    text = str(caught.value)
    assert expected in text
    assert "\n" not in text
    assert text.startswith(str(path))


def test_a_file_without_header_is_read_as_it_stands(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["ismrmrd_header"]
    scan = FastMRI().open(path, invsolve.make)
    assert scan.y[0:1].shape == (1, COILS, READOUT, PHASE)
    assert scan.region is None
    assert scan.truth is None
    assert any("ismrmrd_header" in text for text in scan.missing)


@pytest.mark.parametrize(
    "xml",
    [
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>',
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"),
    ],
)
def test_a_header_can_do_nothing(xml: bytes) -> None:
    with pytest.raises(UserError, match=r"f\.h5: has a document type or entities"):
        parse_header(xml, "f.h5")


#: Encoded points and field of view, the image's, and what is kept, along one axis: points x image's over encoded view.
VIEWS = {
    "readout oversampled, image interpolated": (128, 400.0, 128, 200.0, 64),
    "image of fewer points, same view": (96, 240.0, 64, 240.0, 96),
    "phase oversampled, image interpolated": (96, 300.0, 128, 200.0, 64),
    "one pixel size to a rounding": (372, 162.0, 320, 140.0, 320),
    "image larger than what is encoded": (64, 200.0, 96, 300.0, 64),
    "odd": (45, 90.0, 15, 30.0, 15),
    "no view": (128, 0.0, 64, 0.0, 64),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_the_field_of_view_says_what_is_kept(kind: str) -> None:
    points, encoded, stated, image, kept = VIEWS[kind]
    view = f"<fieldOfView_mm><x>{encoded}</x><y>{encoded}</y><z>5</z></fieldOfView_mm>"
    xml = header(readout=points, phase=points, rows=stated, columns=stated)
    xml = re.sub(r"<fieldOfView_mm>.*?</fieldOfView_mm>", view, xml, count=1)
    xml = xml.replace("<x>240</x><y>240</y>", f"<x>{image}</x><y>{image}</y>")
    assert parse_header(xml.encode(), "f.h5").kept((points, points)) == (kept, kept)


@pytest.mark.parametrize("layout", ["fastmri", "ismrmrd"])
def test_a_scanner_that_interpolates_keeps_its_field_of_view(tmp_path: Path, layout: str) -> None:
    # 480 x 320 mm encoded, 240 x 240 mm of it shown on twice as many points: 32 of 64 rows, 30 of 40 columns.
    xml = header(rows=2 * ROWS, columns=2 * COLUMNS)
    if layout == "fastmri":
        raw = write_fastmri(tmp_path / "scan.h5")
        with h5py.File(raw, "a") as file:
            del file["ismrmrd_header"], file["reconstruction_rss"]
            file["ismrmrd_header"] = xml.encode()
        scan = FastMRI().open(raw, invsolve.make)
    else:
        scan = ISMRMRD().open(write_lines(tmp_path / "scan.h5", ismrmrd_lines(), xml), invsolve.make)
    assert scan.region == ((0, ROWS), (5, 5 + COLUMNS))
    magnitude = invsolve.reconstruct(scan, strategy="linear").mean.norm(dim=1).numpy()
    body = scene()[0][:, 16 : 16 + ROWS, 5 : 5 + COLUMNS]
    assert np.corrcoef(magnitude[0].ravel(), body[0].ravel())[0, 1] > 0.9
