"""Frames of a moving object: coil maps that are shared, masks that interleave in time, from files and from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets import hdf5
from invsolve.datasets.layouts.bart import BART
from invsolve.datasets.layouts.fastmri import FastMRI
from invsolve.datasets.layouts.ismrmrd import ISMRMRD
from invsolve.datasets.mri.cfl import write_cfl
from invsolve.errors import UserError
from invsolve.files.opening import open_measurement
from tests.files.test_coil_noise import bells, complex_normal, transformed
from tests.support.mri_files import header, line, write_lines
from tests.support.types import linear_operator, offered

N, FRAMES, COILS = 32, 8, 6
SIGMA = 0.01


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of a body through which a spot moves; coil maps; and noisy k-space of all coils, (frames, coils, rows, columns)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:N, :N] - N / 2
    angles = 2 * np.pi * np.arange(FRAMES) / FRAMES
    body = 0.6 * (np.hypot(x / 0.4, y / 0.33) < N)
    spots = [np.hypot(x - 0.14 * N * np.cos(a), y - 0.14 * N * np.sin(a)) < 0.1 * N for a in angles]
    truth = np.stack([body + 0.4 * spot for spot in spots])
    maps = bells(COILS, N)
    kspace = transformed(maps * truth[:, None])
    return truth, maps, kspace + SIGMA * complex_normal(rng, *kspace.shape)


def interleaved() -> np.ndarray:
    """Every other column, the others in the next frame; no centre."""
    return invsolve.kspace_mask("uniform", (N, N), 2, 0.0, frames=FRAMES).numpy()


def write(kind: str, folder: Path) -> Path:
    """The scene, every other column a frame, in a file of this kind."""
    kspace = (scene()[2] * interleaved()[:, None]).astype(np.complex64)
    if kind == "bart":
        array = np.zeros((N, N, 1, COILS, *[1] * 6, FRAMES), np.complex64)
        array[:, :, 0, :, 0, 0, 0, 0, 0, 0] = kspace.transpose(2, 3, 1, 0)
        write_cfl(folder / "scan.cfl", array)
        return folder / "scan.cfl"
    if kind == "fastmri":
        with h5py.File(folder / "scan.h5", "w") as file:
            file["kspace"] = kspace
        return folder / "scan.h5"
    lines = []
    for frame in range(FRAMES):
        for column in np.flatnonzero(interleaved()[frame, 0]).tolist():
            made = line(kspace[frame, :, :, column], column, centre=N // 2)
            made["head"]["idx"]["phase"] = frame
            lines.append(made)
    whole = {"readout": N, "phase": N, "rows": N, "columns": N, "largest": N - 1, "centre": N // 2}
    return write_lines(folder / "raw.h5", lines, header(**whole, encoded_x=240, encoded_y=240))


LAYOUTS = {"bart": BART, "fastmri": FastMRI, "ismrmrd": ISMRMRD}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_frames_share_maps_that_none_of_them_could_give(kind: str, tmp_path: Path) -> None:
    truth, maps, _ = scene()
    path = write(kind, tmp_path)
    layout = LAYOUTS[kind]
    with pytest.raises(UserError, match="too few to calibrate coil maps"):
        layout().open(path, invsolve.make)
    scan = layout(dynamic=True).open(path, invsolve.make)
    assert f"the {FRAMES} frames of a place share its coil maps" in scan.notes
    operators = [offered(scan.operator_for(frame)) for frame in range(FRAMES)]
    for frame, one in enumerate(operators):
        assert one.coil_maps is operators[0].coil_maps or torch.equal(one.coil_maps, operators[0].coil_maps)
        assert torch.equal(one.mask[0], torch.from_numpy(interleaved()[frame, 0]))
    # Of all frames together k-space is whole: the maps are the true ones, up to a phase, where there is signal.
    inside = truth[0] > 0
    overlap = np.abs((operators[0].coil_maps.numpy().conj() * maps).sum(0)) / np.linalg.norm(maps, axis=0) ** 2
    assert np.quantile(overlap[inside], 0.05) > 0.98


def error(mean: np.ndarray, truth: np.ndarray) -> float:
    inside = truth[0] > 0
    return float(np.linalg.norm((mean - truth)[:, inside]) / np.linalg.norm(truth[:, inside]))


@pytest.mark.slow
def test_a_moving_object_from_a_file_to_its_frames(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    """SENSE and total variation of two of the frames, with maps from all, beat what does not move with the object."""
    truth, maps, kspace = scene()
    path = write("bart", tmp_path)
    still = error(np.stack([truth.mean(0)] * FRAMES), truth)
    combined = (maps.conj() * transformed((kspace * interleaved()[:, None]).conj()).conj()).sum(1)
    folded = error(np.abs(2 * combined), truth)
    found = {}
    for strategy in ("linear", "tv"):
        out = tmp_path / f"{strategy}.h5"
        arguments = ("-o", out, "--strategy", strategy, "--read", "dynamic=true", "--slices", "2:4")
        code, _, err = cli("reconstruct", path, *arguments)
        assert code == 0, err
        mean = hdf5.read_result(out).mean[0:2].numpy()
        assert mean.shape == (2, 2, N, N)
        found[strategy] = error(np.hypot(mean[:, 0], mean[:, 1]), truth[2:4])
    assert folded > 0.3
    assert found["linear"] < 0.6 * still
    assert found["tv"] < 0.5 * found["linear"]


def test_a_moving_object_from_python(tmp_path: Path) -> None:
    truth, maps, _ = scene()
    coil_maps = torch.from_numpy(maps.astype(np.complex64))
    operator = invsolve.operator(
        "mri", coil_maps=coil_maps, mask="uniform", acceleration=2, centre_fraction=0.0, frames=FRAMES
    )
    assert operator.items == FRAMES
    assert torch.equal(offered(operator.measured())[:, 0], torch.from_numpy(interleaved()[:, 0]))
    for frame in range(FRAMES):
        assert operator.for_item(frame).coil_maps.data_ptr() == operator.for_item(0).coil_maps.data_ptr()
    images = torch.from_numpy(truth.astype(np.float32))[:, None]
    noise = invsolve.Gaussian(SIGMA)
    y = invsolve.simulate(images, operator, noise)
    for frame in range(FRAMES):
        clean = operator.for_item(frame)(images[frame : frame + 1].to(torch.complex64))
        assert float((y[frame] - clean[0]).abs().max()) < 6 * SIGMA
    result = invsolve.reconstruct(y, operator, noise=noise, strategy="linear", scale=(0, 1))
    mean = result.mean.numpy()
    still = error(np.stack([truth.mean(0)] * FRAMES), truth)
    assert error(np.hypot(mean[:, 0], mean[:, 1]), truth) < 0.6 * still
    hdf5.write_scan(tmp_path / "scan.h5", y, operator, noise)
    again = open_measurement(tmp_path / "scan.h5")
    assert torch.equal(offered(again.operator_for(3)).mask, operator.for_item(3).mask)
    with pytest.raises(UserError, match="has parameters for 8"):
        invsolve.simulate(images[:3], operator, noise)


def test_what_moves_is_told_from_what_is_elsewhere(tmp_path: Path) -> None:
    """BART's SLICE counts places, TIME counts frames; a pattern moves on with the frames of a place."""
    kspace = scene()[2].astype(np.complex64)
    array = np.zeros((N, N, 1, COILS, *[1] * 6, 2, 1, 1, 2), np.complex64)
    for place in range(2):
        for frame in range(2):
            array[:, :, 0, :, 0, 0, 0, 0, 0, 0, frame, 0, 0, place] = kspace[2 * place + frame].transpose(1, 2, 0)
    write_cfl(tmp_path / "scan", array)
    path = tmp_path / "scan.cfl"
    scan = BART(dynamic=True, mask="uniform", acceleration=2, centre_fraction=0.0).open(path, invsolve.make)
    assert scan.volumes == [0, 0, 1, 1]
    first = [int(offered(scan.operator_for(k)).mask[0].nonzero()[0]) for k in range(4)]
    assert first == [0, 1, 0, 1]
    maps = [offered(scan.operator_for(k)).coil_maps for k in range(4)]
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[2], maps[3])
    assert not torch.equal(maps[0], maps[2])
    assert "512 of these 1024 points kept, 2.00 times fewer, by mask=uniform with acceleration=2" in scan.notes
    still = BART(mask="poisson-disc", acceleration=3, centre_fraction=0.2).open(path, invsolve.make)
    masks = [offered(still.operator_for(k)).mask for k in range(4)]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert torch.equal(masks[0], invsolve.kspace_mask("poisson-disc", (N, N), 3, 0.2))
    with pytest.raises(UserError, match="mask=uniform keeps points by acceleration=; give it"):
        BART(mask="uniform")
    with pytest.raises(UserError, match=r"scan\.cfl: mask='partial-fourier' measures more than half"):
        BART(mask="partial-fourier", acceleration=3).open(path, invsolve.make)


def test_frames_that_are_given_maps_keep_them(tmp_path: Path) -> None:
    path = write("fastmri", tmp_path)
    given = torch.from_numpy(np.stack([bells(COILS, N) * (1 + k) for k in range(FRAMES)]).astype(np.complex64))
    scan = FastMRI(dynamic=True, coil_maps=given, real=False).open(path, invsolve.make)
    for frame in range(FRAMES):
        assert torch.equal(offered(scan.operator_for(frame)).coil_maps, given[frame])


def cine(acceleration: float = 4) -> tuple[invsolve.LinearOperator, torch.Tensor]:
    """All frames at once, and the truth (1, 1, frames, rows, columns)."""
    truth, maps, _ = scene()
    operator = linear_operator(
        "mri-cine",
        coil_maps=torch.from_numpy(maps.astype(np.complex64)),
        image_size=[FRAMES, N, N],
        mask="uniform",
        acceleration=acceleration,
        centre_fraction=0.0,
    )
    return operator, torch.from_numpy(truth.astype(np.float32))[None, None]


def test_all_frames_at_once_are_the_frames() -> None:
    whole, images = cine()
    frames = invsolve.operator(
        "mri",
        coil_maps=offered(whole).coil_maps[:, 0],
        mask="uniform",
        acceleration=4,
        centre_fraction=0.0,
        frames=FRAMES,
    )
    x = images * torch.exp(0.3j * torch.arange(FRAMES)).view(1, 1, -1, 1, 1)
    y, normal = whole(x), whole.normal(x)
    for k in range(FRAMES):
        one = frames.for_item(k)
        torch.testing.assert_close(y[:, :, k], one(x[:, :, k]), rtol=0, atol=1e-6)
        torch.testing.assert_close(normal[:, :, k], one.normal(x[:, :, k]), rtol=0, atol=1e-5)
    assert offered(whole).group_index.shape == (1, FRAMES, 1, N)


def test_one_coil_of_all_frames_is_solved_directly() -> None:
    whole = linear_operator("mri-cine", image_size=[3, 5, 6], acceleration=2).double()
    z = torch.randn(1, 1, 3, 5, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    y = whole(z.flip(-1))
    solved = whole.prox(z, y, 0.3)
    torch.testing.assert_close(whole.normal(solved) + 0.3 * solved, whole.adjoint(y) + 0.3 * z, rtol=0, atol=1e-12)


def test_total_variation_couples_frames_that_are_one_image(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    """A quarter of k-space for each frame: what is still is measured whole by four of them together."""
    truth, maps, _ = scene()
    _, images = cine()
    hdf5.write_images(tmp_path / "x.h5", images)
    np.save(tmp_path / "maps.npy", maps.astype(np.complex64))
    words = ("coil_maps=" + str(tmp_path / "maps.npy"), "mask=uniform", "acceleration=4", "centre_fraction=0")
    settings = [text for word in words for text in ("--set", word)]
    common = ("--operator", "mri-cine", "--noise", "gaussian:0.01")
    code, _, err = cli("simulate", tmp_path / "x.h5", "-o", tmp_path / "y.h5", *common, *settings)
    assert code == 0, err
    scan = open_measurement(tmp_path / "y.h5")
    options: dict[str, Any] = {"strategy": invsolve.strategy("tv", steps=160), "scale": (0, 1)}
    together = invsolve.reconstruct(scan, **options).mean[0].norm(dim=0).numpy()
    frames = invsolve.operator(
        "mri", coil_maps=offered(scan.operator).coil_maps[:, 0], mask=offered(scan.operator).mask[3]
    )
    alone = invsolve.reconstruct(scan.y[0:1][:, :, 3], frames, noise=invsolve.Gaussian(SIGMA), **options)
    single = error(alone.mean[0].norm(dim=0).numpy()[None], truth[3:4])
    assert error(together[3:4], truth[3:4]) < 0.7 * single
    assert error(together, truth) < error(np.stack([truth.mean(0)] * FRAMES), truth)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"acceleration": 2}, "needs image_size="),
        ({"mask": torch.ones(1, 8)}, r"needs image_size= or a mask= of frames, rows, columns to know the image size$"),
        ({"image_size": [4, 8]}, r"N or \[frames, rows, columns\]"),
        ({"image_size": [3, 8, 8], "coil_maps": torch.ones(2, 8, 9) + 0j}, "maps of 8 x 9 do not fit frames of 8 x 8"),
        ({"image_size": [3, 8, 8], "coil_maps": torch.ones(2, 8, 8)}, "coil_maps must be complex"),
        ({"image_size": [3, 8, 8], "mask": torch.ones(4, 1, 8)}, r"mask \(4, 1, 8\) does not fit images of 3 x 8 x 8"),
    ],
)
def test_what_does_not_fit_a_cine_is_one_line(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        invsolve.operator("mri-cine", **parameters)
    assert "\n" not in str(caught.value)
