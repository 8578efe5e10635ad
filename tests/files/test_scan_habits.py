"""What goes wrong while a scan is taken: each with discs whose attenuation is known, as counts in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.contracts.measurement import Measurement
from invsolve.datasets.layouts.array import Array
from invsolve.datasets.layouts.dxchange import DXchange
from invsolve.datasets.layouts.nxtomo import NXtomo
from invsolve.errors import UserError
from tests.support.types import offered

ANGLES, WIDTH, BEAM = 180, 80, 8000
DEGREES = np.arange(ANGLES) * 1.0
MU, RADIUS, CENTRE = 0.01, 30.0, 39.5


def chords(degrees: np.ndarray, width: int = WIDTH, centre: float = CENTRE, radius: float = RADIUS) -> np.ndarray:
    """Line integrals of a disc of attenuation MU around the axis with one of 3 MU in it, in closed form."""
    s, theta = np.arange(width) - centre, np.deg2rad(degrees)[:, None]

    def disc(x: float, y: float, r: float, mu: float) -> np.ndarray:
        return 2 * mu * np.sqrt(np.clip(r**2 - (s - x * np.cos(theta) - y * np.sin(theta)) ** 2, 0, None))

    return disc(0, 0, radius, MU) + disc(12, 5, 8, 2 * MU)


def expose(transmission: np.ndarray, beam: float = BEAM, seed: int = 0) -> np.ndarray:
    """Counts (frames, 2 rows, columns) above a dark level of 100."""
    rng = np.random.default_rng(seed)
    return 100 + rng.poisson(beam * np.repeat(transmission[:, None], 2, 1))


def scan(path: Path, change: Callable[[dict[str, np.ndarray]], None] = lambda parts: None, **known: np.ndarray) -> Path:
    """A DXchange file of the discs, after `change` has gone over its datasets."""
    degrees = known.get("degrees", DEGREES)
    lines = known.get("lines", chords(degrees))
    width = lines.shape[1]
    parts = {
        "data": expose(np.exp(-lines)),
        "data_white": expose(np.ones((10, width)), seed=1),
        "data_dark": expose(np.zeros((10, width)), seed=2),
        "theta": degrees,
    }
    change(parts)
    with h5py.File(path, "w") as file:
        for name, values in parts.items():
            file[f"exchange/{name}"] = values if name == "theta" else np.clip(values, 0, 65535).astype("u2")
        file["exchange/theta"].attrs["units"] = "degrees"
    return path


def level(measured: Measurement) -> float:
    """Mean attenuation of the large disc, away from the small one and the rim, over both rows."""
    image = measured.operator.baseline(measured.y[0:2]).mean(0)[0].numpy()
    y, x = np.mgrid[: len(image), : len(image)] - (len(image) - 1) / 2
    return float(image[(np.hypot(x, y) < 26) & (np.hypot(x - 12, y + 5) > 12)].mean())


def errors(measured: Measurement, lines: np.ndarray) -> np.ndarray:
    return (measured.y[0:2] - torch.from_numpy(lines)).numpy()


def said(measured: Measurement, text: str) -> bool:
    return any(text in line for line in measured.notes)


def test_nothing_is_wrong(tmp_path: Path) -> None:
    measured = DXchange(centre=CENTRE).open(scan(tmp_path / "a.h5"), invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert measured.noise.sigma == pytest.approx(errors(measured, chords(DEGREES)).std(), rel=0.05)
    for word in (
        "left out:",
        "stand out",
        "do not follow",
        "monitor",
        "beyond the detector",
        "half acquisition",
        "brighter",
        "saturates",
    ):
        assert not said(measured, word), measured.notes
    # What is done for outliers costs nothing where there are none.
    plain = DXchange(centre=CENTRE, flats="mean", zingers=False, dead_pixels=False, bad_frames=False)
    assert float((plain.open(tmp_path / "a.h5", invsolve.make).y[0:2] - measured.y[0:2]).abs().max()) < 1e-3


@pytest.mark.parametrize("dark", [1, 2, 4])
def test_dark_flats(tmp_path: Path, dark: int) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data_white"][1 : 1 + dark] = 100

    path = scan(tmp_path / "a.h5", change)
    measured = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, f"{dark} of 10 flats do not have the usual beam and are left out")
    assert measured.noise.sigma == pytest.approx(errors(measured, chords(DEGREES)).std(), rel=0.1)
    wrong = level(DXchange(centre=CENTRE, flats="mean", bad_frames=False).open(path, invsolve.make))
    assert wrong < 0.95 * MU


def test_flats_of_which_half_are_dark_are_refused(tmp_path: Path) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data_white"][:5] = 100

    path = scan(tmp_path / "a.h5", change)
    with pytest.raises(UserError, match=r"the 10 flats disagree"):
        DXchange(centre=CENTRE).open(path, invsolve.make)


def test_one_dark_flat_of_three(tmp_path: Path) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data_white"] = parts["data_white"][:3]
        parts["data_white"][1] = 100

    measured = DXchange(centre=CENTRE).open(scan(tmp_path / "a.h5", change), invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, "1 of 3 flats do not have the usual beam and are left out: number 1")
    path = scan(tmp_path / "b.h5", lambda parts: parts["data_white"].__setitem__(slice(4, None), 100))
    with pytest.raises(UserError, match=r"the 10 flats disagree"):
        DXchange(centre=CENTRE).open(path, invsolve.make)


def test_flats_of_another_beam_than_the_projections_are_told(tmp_path: Path) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data_white"] = 100 + (parts["data_white"] - 100) * np.linspace(1, 0.8, 10)[:, None, None]

    path = scan(tmp_path / "a.h5", change)
    measured = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert said(measured, "brighter than in the flats")
    assert level(measured) < 0.95 * MU
    mended = DXchange(centre=CENTRE, air=5).open(path, invsolve.make)
    assert level(mended) == pytest.approx(MU, rel=0.02)
    assert not said(mended, "brighter than in the flats")


def test_zingers_in_flats_and_darks_are_no_noise(tmp_path: Path) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        for name in ("data_white", "data_dark"):
            parts[name][np.random.default_rng(3).random(parts[name].shape) < 3e-3] = 40000

    measured = DXchange(centre=CENTRE).open(scan(tmp_path / "a.h5", change), invsolve.make)
    assert measured.noise.sigma == pytest.approx(errors(measured, chords(DEGREES)).std(), rel=0.1)


@pytest.mark.parametrize(("name", "top"), [("data_white", 8000), ("data", 6000)])
def test_a_detector_that_saturates_is_told(tmp_path: Path, name: str, top: int) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts[name] = np.minimum(parts[name], top)

    measured = DXchange(centre=CENTRE).open(scan(tmp_path / "a.h5", change), invsolve.make)
    assert said(measured, f"are the largest there is, {top}: the detector saturates")
    # Counts without noise, of which many are alike, do not.
    exact = {
        "data": np.repeat(100 + BEAM * np.exp(-chords(DEGREES))[:, None], 2, 1),
        "data_white": np.full((10, 2, WIDTH), 100 + BEAM),
        "data_dark": np.full((10, 2, WIDTH), 100),
    }
    clean = DXchange(centre=CENTRE).open(scan(tmp_path / "b.h5", lambda parts: parts.update(exact)), invsolve.make)
    assert not said(clean, "saturates")


def test_a_dark_with_the_beam_on(tmp_path: Path) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data_dark"][3] = parts["data_white"][3]

    measured = DXchange(centre=CENTRE).open(scan(tmp_path / "a.h5", change), invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, "1 of 10 darks have the beam on")


def test_projections_without_beam(tmp_path: Path) -> None:
    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data"][60:70] = parts["data_dark"]

    path = scan(tmp_path / "a.h5", change)
    measured = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, "10 of 180 projections are without beam and are left out")
    assert measured.operator.geometry.angles == tuple(np.delete(DEGREES, np.arange(60, 70)))
    assert level(DXchange(centre=CENTRE, bad_frames=False).open(path, invsolve.make)) > 1.1 * MU


def test_zingers_and_dropped_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    where = rng.permutation(ANGLES * WIDTH)[:200]
    angle, column = where // WIDTH, where % WIDTH

    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data"][angle[:150], 0, column[:150]] += 20000
        parts["data"][angle[150:], 1, column[150:]] = 100
        parts["data_white"][3, :, 20] = 60000
        parts["data_dark"][4, :, 40] = 60000

    path = scan(tmp_path / "a.h5", change)
    measured = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert said(measured, "stand out from the neighbouring projections")
    off = errors(measured, chords(DEGREES))
    assert np.abs(off).max() < 0.15
    assert np.abs(off[:, :, [20, 40]].mean()) < 0.005
    raw = errors(DXchange(centre=CENTRE, zingers=False, flats="mean").open(path, invsolve.make), chords(DEGREES))
    assert np.abs(raw).max() > 1


def test_sharp_and_sparse_objects_are_no_zingers(tmp_path: Path) -> None:
    # Wires far from the axis, of which the projections move by more than their width from one angle to the next.
    s = np.arange(WIDTH) - CENTRE
    for step in (1.0, 3.0, 8.0):
        degrees = np.arange(0, 180, step)
        theta = np.deg2rad(degrees)[:, None]
        lines = sum(
            2 * 1.0 * np.sqrt(np.clip(1.5**2 - (s - 35 * np.cos(theta - a)) ** 2, 0, None)) for a in (0.3, 1.7, 2.9)
        )
        path = scan(tmp_path / f"{step}.h5", degrees=degrees, lines=lines)
        measured = DXchange(centre=CENTRE).open(path, invsolve.make)
        plain = DXchange(centre=CENTRE, zingers=False, dead_pixels=False).open(path, invsolve.make)
        assert float((measured.y[0:2] - plain.y[0:2]).abs().max()) < 1e-3, step


def test_stuck_pixels_of_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)

    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data"][:, 0, 25] = 3000  # stuck, although its flats are well
        parts["data"][:, 0, 50] = rng.integers(0, 60000, ANGLES)  # flickering
        parts["data"][:, 1, 33] = 100 + (parts["data"][:, 1, 33] - 100) // 4  # a quarter of the light
        parts["data_white"][:, 1, 60] = 100 + (parts["data_white"][:, 1, 60] - 100) // 20  # hardly any light at all
        parts["data"][:, 1, 60] = 100 + (parts["data"][:, 1, 60] - 100) // 20

    path = scan(tmp_path / "a.h5", change)
    measured = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert said(measured, "3 detector pixels in the 2 detector rows looked at do not follow the data")
    assert said(measured, "1 dead detector pixels")
    truth = chords(DEGREES)
    for row, column in ((0, 25), (0, 50), (1, 33), (1, 60)):
        assert np.abs(errors(measured, truth)[row, :, column]).max() < 0.12
    assert np.abs(errors(DXchange(centre=CENTRE, dead_pixels=False).open(path, invsolve.make), truth)).max() > 0.5


def test_rays_that_nothing_passes_do_not_set_the_noise(tmp_path: Path) -> None:
    lines = chords(DEGREES)
    lines[:, 30:36] += 30.0
    measured = DXchange(centre=CENTRE, dead_pixels=False).open(scan(tmp_path / "a.h5", lines=lines), invsolve.make)
    seen = errors(measured, lines)[:, :, np.r_[:30, 36:WIDTH]].std()
    assert measured.noise.sigma == pytest.approx(seen, rel=0.1)
    assert said(measured, "rays let through no more than the noise")


def test_a_few_percent_of_floored_rays_do_not_either(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)

    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data"][rng.random(parts["data"].shape) < 0.03] = 0

    measured = DXchange(centre=CENTRE, zingers=False).open(scan(tmp_path / "a.h5", change), invsolve.make)
    clean = DXchange(centre=CENTRE).open(scan(tmp_path / "b.h5"), invsolve.make)
    assert measured.noise.sigma == pytest.approx(clean.noise.sigma, rel=0.05)


def test_the_beam_changes_and_air_shows_it(tmp_path: Path) -> None:
    decay = np.linspace(1, 0.7, ANGLES)

    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data"] = expose(np.exp(-chords(DEGREES)) * decay[:, None])

    path = scan(tmp_path / "a.h5", change)
    plain = DXchange(centre=CENTRE).open(path, invsolve.make)
    assert said(plain, "the open beam changes by")
    measured = DXchange(centre=CENTRE, air=5).open(path, invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert level(plain) > 1.04 * MU
    with pytest.raises(UserError, match="air=40 at both edges is all"):
        DXchange(centre=CENTRE, air=40).open(path, invsolve.make)


def test_a_monitor_by_name(tmp_path: Path) -> None:
    decay = np.linspace(1, 0.7, ANGLES)

    def change(parts: dict[str, np.ndarray]) -> None:
        parts["data"] = expose(np.exp(-chords(DEGREES)) * decay[:, None])

    path = scan(tmp_path / "a.h5", change)
    with h5py.File(path, "a") as file:
        file["beam"], file["short"] = 200 * decay, decay[:9]
    measured = DXchange(centre=CENTRE, monitor="beam").open(path, invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, "beam monitor beam (changes by 42.9%)")
    with pytest.raises(UserError, match="short has 9 values for 180 projections and 10 flats"):
        DXchange(centre=CENTRE, monitor="short").open(path, invsolve.make)


KEYS = np.r_[[2] * 5, [1] * 10, [0] * ANGLES]


def nxtomo(path: Path, beam: np.ndarray | None = None, control: np.ndarray | None = None, **more: Any) -> Path:
    """The discs as NXtomo, with darks and flats first; `more` are datasets of the detector."""
    keys = np.r_[KEYS, [0] * (len(control) - len(KEYS))] if control is not None else KEYS
    late = len(keys) - len(KEYS)
    angles = np.r_[np.zeros(15), DEGREES, [180, 90, 0][:late]]
    lines = np.concatenate([np.zeros((15, WIDTH)), chords(DEGREES), chords(angles[-late:], centre=45.5)[:late]])
    transmission = np.where((keys == 2)[:, None], 0, np.exp(-lines)) * (1 if beam is None else beam[:, None])
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXtomo"
        detector = entry.create_group("instrument/detector")
        entry["instrument"].attrs["NX_class"], detector.attrs["NX_class"] = "NXinstrument", "NXdetector"
        detector["data"] = expose(transmission).astype("u2")
        detector["image_key"] = keys
        if control is not None:
            detector["image_key_control"] = control
        sample = entry.create_group("sample")
        sample.attrs["NX_class"] = "NXsample"
        sample["rotation_angle"] = angles
        sample["rotation_angle"].attrs["units"] = "degree"
        for name, (values, unit) in more.items():
            detector[name] = values
            detector[name].attrs["units"] = unit
    return path


def test_alignment_frames_are_no_projections(tmp_path: Path) -> None:
    path = nxtomo(tmp_path / "a.nxs", control=np.r_[KEYS, [-1] * 3])
    measured = NXtomo(centre=CENTRE).open(path, invsolve.make)
    assert said(measured, "3 alignment frames")
    assert measured.operator.geometry.angles == tuple(DEGREES)
    assert np.abs(errors(measured, chords(DEGREES))).max() < 0.15


def test_the_files_monitor_is_used_where_the_data_agree(tmp_path: Path) -> None:
    beam = np.r_[np.ones(15), np.linspace(1, 0.7, ANGLES)]
    path = nxtomo(tmp_path / "a.nxs", beam=beam)
    with h5py.File(path, "a") as file:
        file["entry/control/data"] = 195.0 * beam
    measured = NXtomo(centre=CENTRE).open(path, invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, "projections and flats normalised to it")
    assert level(NXtomo(centre=CENTRE, monitor="off").open(path, invsolve.make)) > 1.04 * MU
    # One that tells of something else is said, and left.
    steady = nxtomo(tmp_path / "b.nxs")
    with h5py.File(steady, "a") as file:
        file["entry/control/data"] = 195.0 * beam
    measured = NXtomo(centre=CENTRE).open(steady, invsolve.make)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert said(measured, "disagrees with the projections' brightness and is not used")


def test_a_monitor_that_says_when_the_beam_was_off(tmp_path: Path) -> None:
    beam = np.ones(len(KEYS))
    beam[15 + 40 : 15 + 60] = 0
    path = nxtomo(tmp_path / "a.nxs", beam=beam)
    with h5py.File(path, "a") as file:
        file["entry/control/data"] = beam
    measured = NXtomo(centre=CENTRE).open(path, invsolve.make)
    assert said(measured, "20 of 180 projections are without beam")
    assert level(measured) == pytest.approx(MU, rel=0.02)


@pytest.mark.parametrize(
    "pixel",
    [(10.0, "micrometer"), (10.0, "micrometres"), (1e-5, "metre"), (0.01, "Millimeters"), (1e4, "nm"), (10.0, "µm")],
)
def test_length_units(tmp_path: Path, pixel: tuple[float, str]) -> None:
    measured = NXtomo(centre=CENTRE).open(nxtomo(tmp_path / "a.nxs", x_pixel_size=pixel), invsolve.make)
    assert measured.unit == "1/mm"
    assert measured.operator.geometry.pixel_size == pytest.approx(0.01)


def test_unknown_length_units_are_said(tmp_path: Path) -> None:
    measured = NXtomo(centre=CENTRE).open(nxtomo(tmp_path / "a.nxs", x_pixel_size=(10.0, "furlong")), invsolve.make)
    assert measured.unit == "1/pixel"
    assert any("10 'furlong'" in line for line in measured.missing)


@pytest.mark.parametrize("stop", [np.pi, 2 * np.pi])
def test_radians_are_not_taken_for_degrees(tmp_path: Path, stop: float) -> None:
    turned = np.linspace(0, stop, 181)

    def change(parts: dict[str, np.ndarray]) -> None:
        parts["theta"] = turned

    degrees = np.rad2deg(turned)
    path = scan(tmp_path / "a.h5", change, degrees=degrees)
    with pytest.raises(UserError, match="as radians do; say angle_unit=radians"):
        DXchange(centre=CENTRE).open(path, invsolve.make)
    measured = DXchange(centre=CENTRE, angle_unit="radians").open(path, invsolve.make)
    assert np.allclose(offered(measured.operator).geometry.angles, degrees)
    assert level(measured) == pytest.approx(MU, rel=0.02)
    assert DXchange(centre=CENTRE, angle_unit="degrees").open(path, invsolve.make).operator.geometry.angles == tuple(
        turned
    )
    with h5py.File(path, "a") as file:
        file["exchange/theta"][:] = degrees
        file["exchange/theta"].attrs["units"] = "radians"
    with pytest.raises(UserError, match="as degrees do; say angle_unit=degrees"):
        DXchange(centre=CENTRE).open(path, invsolve.make)


def test_radians_and_rings_of_a_plain_array(tmp_path: Path) -> None:
    gain = np.zeros(WIDTH)
    gain[[20, 55]] = 0.3
    lines = chords(DEGREES)
    np.save(tmp_path / "a.npy", lines + gain)
    options: dict[str, Any] = {"axes": "theta,x", "values": "integrals", "centre": CENTRE}
    radians = torch.from_numpy(np.deg2rad(DEGREES))
    with pytest.raises(UserError, match="as radians do"):
        Array(angles=radians, **options).open(tmp_path / "a.npy", invsolve.make)
    plain = Array(angles=radians, angle_unit="radians", **options).open(tmp_path / "a.npy", invsolve.make)
    assert np.allclose(offered(plain.operator).geometry.angles, DEGREES)
    measured = Array(angles=ANGLES, rings=9, **options).open(tmp_path / "a.npy", invsolve.make)
    assert said(measured, "rings suppressed")
    off = measured.y[0:1][0].numpy() - lines
    assert np.abs(off.mean(0))[[20, 55]].max() < 0.1
    assert np.linalg.norm(off) < 0.5 * np.linalg.norm(np.tile(gain, (ANGLES, 1)))


@pytest.mark.parametrize("centre", [12.0, 51.0])
def test_half_acquisition(tmp_path: Path, centre: float) -> None:
    degrees = np.arange(360.0)
    lines = chords(degrees, 64, centre, 45.0)
    path = scan(tmp_path / "a.h5", degrees=degrees, lines=lines)
    measured = DXchange(centre=centre).open(path, invsolve.make)
    assert said(measured, "half acquisition")
    image = measured.operator.baseline(measured.y[0:2]).mean(0)[0].numpy()
    assert len(image) == 103
    y, x = np.mgrid[:103, :103] - 51.0
    r, away = np.hypot(x, y), np.hypot(x - 12, y + 5) > 12
    for low, high, truth in ((0, 10, MU), (10, 20, MU), (30, 42, MU), (47, 51, 0.0)):
        ring = image[(r >= low) & (r < high) & away].mean()
        assert ring == pytest.approx(truth, abs=0.03 * MU), (low, high)


@pytest.mark.parametrize("width", [44, 50])
def test_an_object_larger_than_the_detector(tmp_path: Path, width: int) -> None:
    lines = chords(DEGREES, width, (width - 1) / 2)
    measured = DXchange(centre=(width - 1) / 2).open(scan(tmp_path / "a.h5", lines=lines), invsolve.make)
    assert said(measured, "the object reaches beyond the detector")
    image = measured.operator.baseline(measured.y[0:2]).mean(0)[0].numpy()
    y, x = np.mgrid[:width, :width] - (width - 1) / 2
    inside = (np.hypot(x, y) < width / 2 - 4) & (np.hypot(x - 12, y + 5) > 12)
    assert image[inside].mean() == pytest.approx(MU, rel=0.06)
    plain = measured.operator.fbp(measured.y[0:2], extend=False).mean(0)[0].numpy()
    assert plain[inside].mean() > 1.08 * MU
