"""Layout "dxchange": synthetic files whose answer is known, what is refused, and the real tooth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.layouts.dxchange import DXchange
from invsolve.datasets.phantoms import Ellipse, render, sinogram, thorax
from invsolve.errors import UserError
from tests.support.types import offered

TOOTH = Path(__file__).parents[3] / "shared" / "data" / "ct_tooth" / "tooth.h5"
SIZE, ANGLES, CENTRE = 96, 90, 44.3
DEGREES = np.arange(ANGLES) * 180 / ANGLES
COUNTS, BLACK, GAIN = 5000.0, 100.0, 0.5


def ideal(rows: int = 3, degrees: np.ndarray = DEGREES, width: int = SIZE) -> np.ndarray:
    """Line integrals (rows, angles, detectors) of discs that grow from row to row."""
    body = [Ellipse(0.6, 0.5, 0.4, 0.1, 0.05), Ellipse(0.4, 0.1, 0.2, -0.1, 0.2, 30.0)]
    parts = [
        sinogram([*body, Ellipse(0.5, 0.05 + 0.02 * r, 0.05, 0.3, 0.1)], degrees, width, SIZE, 1.0, CENTRE)
        for r in range(rows)
    ]
    return np.stack([p.numpy() for p in parts]) * (2.0 / SIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "scan.h5")


def write(
    path: Path, integrals: np.ndarray | None = None, degrees: np.ndarray = DEGREES, counts: float = COUNTS
) -> Path:
    rng = np.random.default_rng(3)
    lines = ideal(degrees=degrees) if integrals is None else integrals
    rows, _, width = lines.shape
    beam = counts * (1 + 0.2 * rng.random((rows, 1, width)))
    black = BLACK + 5 * rng.random((rows, 1, width))

    def frames(mean: np.ndarray) -> np.ndarray:
        return (black + GAIN * rng.poisson(mean / GAIN) + 2 * rng.standard_normal(mean.shape)).transpose(1, 0, 2)

    with h5py.File(path, "w") as file:
        file["exchange/data"] = frames(beam * np.exp(-lines)).astype(np.float32)
        file["exchange/data_white"] = frames(np.repeat(beam, 20, 1)).astype(np.float32)
        file["exchange/data_dark"] = frames(np.zeros((rows, 20, width))).astype(np.float32)
        file["exchange/theta"] = degrees
        file["exchange/theta"].attrs["units"] = "degrees"
    return path


def refuse(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        DXchange(**options).open(path, invsolve.make)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def test_line_integrals_noise_and_notes(path: Path) -> None:
    scan = DXchange(centre=CENTRE).open(path, invsolve.make)
    with h5py.File(path) as file:
        assert DXchange.recognises(file)
    y = scan.y[0:3]
    truth = torch.from_numpy(ideal())
    assert y.shape == (3, ANGLES, SIZE)
    assert y.dtype == torch.float32
    assert torch.equal(scan.y[1:2], y[1:2])
    actual = float((y - truth).double().pow(2).mean().sqrt())
    assert scan.noise.sigma == pytest.approx(actual, rel=0.1)
    assert abs(float((y - truth).mean())) < 0.1 * actual
    assert scan.unit == "1/pixel"
    assert scan.operator.geometry.centre == CENTRE
    text = " | ".join(scan.notes)
    for part in (
        "90 of 90 angles",
        "20 flats and 20 darks",
        "rotation centre 44.3, given",
        f"sigma {scan.noise.sigma:.4g}",
    ):
        assert part in text


@pytest.mark.parametrize(
    "degrees", [DEGREES, np.arange(91) * 2.0, np.arange(120) * 3.0, 20 + np.arange(80) * 2.2, np.arange(80) * 2.0]
)
def test_centre_is_found(tmp_path: Path, degrees: np.ndarray) -> None:
    path = write(tmp_path / "scan.h5", degrees=degrees)
    scan = DXchange().open(path, invsolve.make)
    assert scan.operator.geometry.centre == pytest.approx(CENTRE, abs=0.25)
    assert "rotation centre 44." in " ".join(scan.notes)


def test_thin_bin_rows_and_units(path: Path) -> None:
    fine = DXchange(centre=CENTRE).open(path, invsolve.make)
    scan = DXchange(thin=3, bin=2, centre=CENTRE, rows=[1, 3], image_size=40, pixel_size=0.5, length_unit="mm").open(
        path, invsolve.make
    )
    g = offered(scan.operator).geometry
    assert len(scan.y) == 2
    assert np.allclose(g.angles, DEGREES[::3])
    assert (g.detectors, g.image_size, g.pixel_size, g.detector_spacing) == (48, (40, 40), 1.0, 1.0)
    # Binned pixel k covers unbinned 2k and 2k + 1: its middle is at 2k + 0.5.
    assert g.centre == pytest.approx((CENTRE - 0.5) / 2)
    pairs = fine.y[1:3][:, ::3].reshape(2, 30, 48, 2).exp().mean(-1).log()
    assert torch.allclose(scan.y[0:2], pairs, atol=0.05)
    assert scan.noise.sigma == pytest.approx(fine.noise.sigma / 2**0.5, rel=0.1)
    assert scan.unit == "1/mm"
    assert scan.fingerprint != fine.fingerprint


def test_binned_scan_reconstructs_in_physical_units(tmp_path: Path) -> None:
    lines = sinogram(thorax(), DEGREES, SIZE, SIZE, 1.0, CENTRE).numpy()[None] * 0.02
    path = write(tmp_path / "scan.h5", lines, counts=20 * COUNTS)
    truth = render(thorax(), 48) * 0.02
    scan = DXchange(bin=2).open(path, invsolve.make)
    image = scan.operator.baseline(scan.y[0:1])[0]
    rows, columns = torch.meshgrid(*(torch.arange(48) - 23.5 for _ in range(2)), indexing="ij")
    seen = rows.hypot(columns) < CENTRE / 2
    errors = [
        float(((image - other) * seen).norm() / truth.norm())
        for other in (truth, truth.flip(-1), truth.flip(-2), 2 * truth)
    ]
    assert errors[0] < 0.18, errors  # the Hann window blurs that much at 48 pixels
    assert min(errors[1:]) > 1.2 * errors[0], errors


@pytest.mark.parametrize("order", ["y:theta:x", "x:y:theta", "y, theta, x"])
def test_other_axis_orders_are_honoured(path: Path, order: str) -> None:
    wanted = DXchange(centre=CENTRE).open(path, invsolve.make).y[0:3]
    names = order.replace(", ", ":").split(":")
    with h5py.File(path, "a") as file:
        for name in ("data", "data_white"):
            values = file[f"exchange/{name}"][:].transpose([("theta", "y", "x").index(n) for n in names])
            del file[f"exchange/{name}"]
            file[f"exchange/{name}"] = values
            file[f"exchange/{name}"].attrs["axes"] = order.replace("theta", "theta_white") if "_" in name else order
        file["exchange/data_dark"].attrs["axes"] = "theta_dark:y:x"
    scan = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert torch.equal(scan.y[0:3], wanted)
    assert torch.equal(scan.y[2:3], wanted[2:3])


def test_flats_without_axes_lie_as_the_projections_do(path: Path) -> None:
    wanted = DXchange(centre=CENTRE).open(path, invsolve.make).y[0:3]
    with h5py.File(path, "a") as file:
        for name in ("data", "data_white", "data_dark"):
            values = file[f"exchange/{name}"][:].transpose(1, 0, 2)
            del file[f"exchange/{name}"]
            file[f"exchange/{name}"] = values
        file["exchange/data"].attrs["axes"] = "y:theta:x"
    assert torch.equal(DXchange(centre=CENTRE).open(path, invsolve.make).y[0:3], wanted)


def test_one_averaged_flat_and_dark_leave_the_noise_unknown(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for name in ("data_white", "data_dark"):
            mean = file[f"exchange/{name}"][:].mean(0)
            del file[f"exchange/{name}"]
            file[f"exchange/{name}"] = mean
    scan = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert scan.noise is None
    assert "noise not known from the file" in " ".join(scan.notes)
    assert torch.allclose(scan.y[:][:, :, 5], torch.from_numpy(ideal())[:, :, 5], atol=0.2)


def test_dead_and_dark_pixels_are_counted(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["exchange/data_white"][:, 1, 30] = 0
        file["exchange/data"][7, 2, 40] = 0
    scan = DXchange(centre=CENTRE).open(path, invsolve.make)
    text = " | ".join(scan.notes)
    assert "1 dead detector pixels" in text
    assert "single values in the 3 detector rows looked at stand out" in text
    y = scan.y[:]
    assert bool(y.isfinite().all())
    assert torch.allclose(y[1, :, 30], (y[1, :, 29] + y[1, :, 31]) / 2, atol=0.05)
    assert float(y[2, 7, 40]) == pytest.approx(ideal()[2, 7, 40], abs=0.06)
    # As it is in the file, when that is asked for: no count, and the floor.
    raw = DXchange(centre=CENTRE, zingers=False).open(path, invsolve.make)
    assert f"1 of {3 * ANGLES * SIZE} transmissions" in " | ".join(raw.notes)
    assert float(raw.y[:][2, 7, 40]) == pytest.approx(-np.log(1e-4), rel=1e-4)


def test_radians(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["exchange/theta"][:] = np.deg2rad(DEGREES)
        file["exchange/theta"].attrs["units"] = "radians"
    assert np.allclose(
        offered(DXchange(centre=CENTRE).open(path, invsolve.make).operator).geometry.angles, DEGREES, atol=1e-4
    )


def test_theta_without_units_is_noted_or_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["exchange/theta"].attrs["units"]
    assert "taken as degrees" in " ".join(DXchange(centre=CENTRE).open(path, invsolve.make).notes)
    with h5py.File(path, "a") as file:
        file["exchange/theta"][:] = np.deg2rad(DEGREES)
    assert "has no units" in refuse(path, centre=CENTRE)


def test_normalised_data_need_no_fields(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["exchange/data"][:] = np.exp(-ideal()).transpose(1, 0, 2)
        del file["exchange/data_dark"]
    assert "has no darks (/exchange/data_dark)" in refuse(path)
    scan = DXchange(normalised=True, centre=CENTRE).open(path, invsolve.make)
    assert torch.allclose(scan.y[:], torch.from_numpy(ideal()), atol=1e-4)
    assert scan.noise is None


def _without(name: str) -> Callable[[h5py.File], object]:
    return lambda file: file.__delitem__(f"exchange/{name}")


def _cut_theta(file: h5py.File) -> None:
    del file["exchange/theta"]
    file["exchange/theta"] = DEGREES[:-1]


def _wrong_flats(file: h5py.File) -> None:
    del file["exchange/data_white"]
    file["exchange/data_white"] = np.ones((5, 3, SIZE + 1))


def _flat_data(file: h5py.File) -> None:
    del file["exchange/data"]
    file["exchange/data"] = np.ones((ANGLES, SIZE))


@pytest.mark.parametrize(
    ("harm", "options", "expected"),
    [
        (_without("theta"), {}, "angles are never invented"),
        (_without("data_white"), {}, "has no flats"),
        (_cut_theta, {}, "has 89 angles, but /exchange/data (90, 3, 96) has 90"),
        (_wrong_flats, {}, "frames of (3, 97) (y, x), but /exchange/data has (3, 96)"),
        (_flat_data, {}, "expected 3 axes"),
        (lambda f: f["exchange/theta"].attrs.__setitem__("units", "gon"), {}, "units='gon'"),
        (lambda f: f["exchange/theta"].__setitem__(slice(None), 0.0), {}, "is 0 for all 90 projections"),
        (lambda f: f["exchange/theta"].__setitem__(3, np.nan), {}, "NaN or infinite angles"),
        (lambda f: f["exchange/data"].attrs.__setitem__("axes", "z:y:x"), {}, "axes='z:y:x'"),
        (lambda f: f["exchange/data"].__setitem__((3, 1, 2), np.nan), {}, "NaN or infinite values in detector row 1"),
        (lambda f: f["exchange/data_white"].__setitem__((slice(None), 2), 0), {}, "detector row 2: no pixel"),
        (
            lambda f: f["exchange/theta"].__setitem__(slice(None), DEGREES / 3),
            {},
            "too few to find the rotation centre",
        ),
        (lambda f: None, {"rows": [2, 5]}, "rows=[2, 5] must be [start, stop) within the 3 detector rows"),
        (lambda f: None, {"centre": 200.0}, "outside the 96 detector pixels"),
        (lambda f: None, {"bin": 60}, "bin=60 leaves fewer than 2"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    path: Path, harm: Callable[[h5py.File], object], options: dict[str, Any], expected: str
) -> None:
    with h5py.File(path, "a") as file:
        harm(file)
    assert expected in refuse(path, **options)


@pytest.mark.parametrize("options", [{"thin": 0}, {"bin": -1}, {"pixel_size": 0.1}, {"length_unit": "mm"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="layout 'dxchange'"):
        DXchange(**options)


def test_options_are_read_from_the_signature() -> None:
    from invsolve import registry
    from invsolve.registry.parameters import build, parameters

    assert registry.find("layout", "dxchange") is DXchange
    assert all(p.text for p in parameters(DXchange))
    assert build(DXchange, "layout", "dxchange", {"rows": [0, 2], "thin": "2"}).thin == 2


@pytest.mark.shared
@pytest.mark.skipif(not TOOTH.exists(), reason="the reference data are not in ../shared/data")
class TestTooth:
    @pytest.mark.slow
    def test_centre_noise_and_range(self) -> None:
        scan = DXchange(thin=6, bin=5).open(TOOTH, invsolve.make)
        unbinned = (scan.operator.geometry.centre + 0.5) * 5 - 0.5
        assert 295.5 <= unbinned <= 296.0
        y = DXchange(centre=295.75, thin=40).open(TOOTH, invsolve.make).y[0:2]
        assert y.shape == (2, 4, 640)  # 181 angles hold four complete groups of 40
        assert -0.15 < float(y.min()) < 0 < 1.5 < float(y.max()) < 2
        # Beside the tooth nothing absorbs, so that the scatter is noise (and a little drift).
        air = DXchange(centre=295.75, bin=5).open(TOOTH, invsolve.make)
        seen = float(air.y[0:2][:, :, :12].std(1).mean())
        assert 0.7 * seen < air.noise.sigma < 2 * seen
        assert 0.005 < DXchange(centre=295.75, thin=90).open(TOOTH, invsolve.make).noise.sigma < 0.009

    @pytest.mark.slow
    def test_back_projection_is_sharp_and_sane(self) -> None:
        images = {}
        for centre in (None, 319.5):
            scan = DXchange(bin=4, centre=centre).open(TOOTH, invsolve.make)
            images[centre] = scan.operator.baseline(scan.y[0:1])[0, 0]
        image, wrong = images[None], images[319.5]
        rows, columns = torch.meshgrid(*(torch.arange(160) - 79.5 for _ in range(2)), indexing="ij")
        inside = rows.hypot(columns) < 70
        # Attenuation is positive: what a wrong centre leaves below zero is several times more.
        assert float(image[inside].clamp(max=0).abs().sum()) < 0.25 * float(wrong[inside].clamp(max=0).abs().sum())
        assert 0.004 < float(image.quantile(0.99)) < 0.012
        assert float(image[inside][rows[inside].hypot(columns[inside]) > 55].abs().mean()) < 2e-4


def test_counts_are_kept_with_noise_that_knows_the_beam(path: Path) -> None:
    scan = DXchange(centre=CENTRE, counts=True).open(path, invsolve.make)
    y, noise = scan.y[0:3].double(), scan.noise
    assert noise.name == "transmission"
    assert noise.gain == pytest.approx(1 / GAIN, rel=0.1)
    # Read noise of 2 counts in a detector of 0.5: as much as 8 counts of Poisson noise.
    assert noise.background == pytest.approx(2**2 / GAIN, rel=0.15)
    assert noise.i0.shape == (3, 1, SIZE)
    assert torch.equal(scan.y[1:2].double(), y[1:2])
    # Against what was put in: beam * exp(-lines), Poisson of this gain, and read noise.
    mean = noise.mean(torch.from_numpy(ideal()))
    away = (y - mean) / noise.std(torch.from_numpy(ideal()))
    assert abs(float(away.mean())) < 0.05
    assert float(away.square().mean()) == pytest.approx(1, abs=0.1)
    # The line integrals that it tells of are those that are read otherwise.
    lines = DXchange(centre=CENTRE).open(path, invsolve.make).y[0:3]
    assert torch.allclose(noise.predicted_from(y).float(), lines, atol=2 * float(noise.background) / COUNTS)


@pytest.mark.parametrize("options", [{"rings": 9}, {"air": 2}, {"normalised": True}])
def test_counts_are_refused_where_they_would_be_changed(options: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"^layout 'dxchange': counts=true keeps the counts as they are, which \w+= changes"
    ):
        DXchange(counts=True, **options)
