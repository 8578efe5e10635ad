"""Layout "bart": pairs .cfl and .hdr written here by their format, k-space by NumPy's centred unitary transform."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.layouts.bart import BART
from invsolve.datasets.layouts.nifti import NIfTI
from invsolve.datasets.mri.cfl import read_cfl, write_cfl, write_images
from invsolve.errors import UserError
from tests.support.mri_files import scene

RNG = np.random.default_rng(0)


def pair(path: Path, values: np.ndarray, extra: str = "") -> Path:
    """Write an array of BART's axes (READ, PHS1, PHS2, COIL, ...): complex float32, the first axis fastest."""
    values.astype("<c8").flatten(order="F").tofile(path.with_suffix(".cfl"))
    sizes = [*values.shape, *[1] * (16 - values.ndim)]
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, sizes))} \n{extra}")
    return path.with_suffix(".cfl")


def measured(path: Path, slices: int = 2, **options: str) -> tuple[Path, np.ndarray]:
    """K-space of slices (SLICE is BART's dimension 13), and the same as (slices, coils, rows, columns)."""
    _, kspace = scene()
    columns = np.arange(kspace.shape[-1])
    kspace = kspace[:slices] * ((columns % 2 == 0) | (np.abs(columns - len(columns) // 2) < 12))
    order = kspace.transpose(2, 3, 1, 0)
    return pair(path, order.reshape(*order.shape[:2], 1, order.shape[2], *[1] * 9, slices), **options), kspace


def test_kspace_of_slices_and_coils(tmp_path: Path) -> None:
    path, kspace = measured(tmp_path / "scan", extra="# Command\nfft -u\n")
    for name in (path, path.with_suffix(".hdr")):
        assert BART.opens(name)
        assert not NIfTI.opens(name)
        scan = BART(real=False).open(name, invsolve.make)
        assert np.allclose(scan.y[0:2].numpy(), kspace, atol=1e-6)
        assert (scan.operator.mask.numpy() == (np.abs(kspace[0]).max((0, 1)) > 0)).all()
    one = BART(slices=[1, 2]).open(path, invsolve.make)
    assert np.allclose(one.y[0:1].numpy()[0], kspace[1], atol=1e-6)


def test_maps_of_bart_explain_its_kspace(tmp_path: Path) -> None:
    image = RNG.random((24, 20)) + 1j * RNG.random((24, 20))
    maps = RNG.normal(size=(2, 24, 20)) + 1j * RNG.normal(size=(2, 24, 20))
    coils = np.fft.ifftshift(maps * image, (-2, -1))
    kspace = np.fft.fftshift(np.fft.fft2(coils, norm="ortho"), (-2, -1))
    path = pair(tmp_path / "k", kspace.transpose(1, 2, 0)[:, :, None])
    sets = np.stack([maps, 0 * maps], -1).transpose(1, 2, 0, 3)[:, :, None]
    given = BART(sensitivities=str(pair(tmp_path / "maps", sets)), real=False).open(path, invsolve.make)
    predicted = given.operator(torch.from_numpy(image[None, None].astype(np.complex64)))
    assert np.allclose(predicted[0].numpy(), kspace, atol=1e-5)
    assert "the first of 2 sets of coil maps is used" in given.notes
    folded = maps * (np.arange(20) < 5)
    both = pair(tmp_path / "both", np.stack([maps, folded], -1).transpose(1, 2, 0, 3)[:, :, None])
    (said,) = [note for note in BART(sensitivities=str(both)).open(path, invsolve.make).notes if "sets of" in note]
    assert said.startswith(
        "the first of 2 sets of coil maps is used: 25% of the pixels that it sees are seen by another"
    )
    two = torch.from_numpy(np.stack([maps, folded]).astype(np.complex64))
    with pytest.raises(UserError, match=r"of several sets \(soft SENSE\) give the first"):
        BART(coil_maps=two).open(path, invsolve.make)
    y, operator = torch.from_numpy(kspace[None].astype(np.complex64)), invsolve.operator("mri", coil_maps=two)
    with pytest.raises(UserError, match=r"has parameters for 2; .*of several sets of coil maps give the first"):
        invsolve.reconstruct(y, operator, strategy="linear", noise=invsolve.Gaussian(0.1))
    other = pair(tmp_path / "other", maps[:, :10].transpose(1, 2, 0)[:, :, None])
    with pytest.raises(UserError, match="10 READ x 20 PHS1 x 2 COIL, but the k-space 24 READ"):
        BART(sensitivities=str(other)).open(path, invsolve.make)


def test_images(tmp_path: Path) -> None:
    images = (RNG.random((6, 5, 1, 1, 1, 3, 1, 1, 1, 1, 2)) + 1j).astype(np.complex64)
    path = pair(tmp_path / "a", images)
    stack = BART(unit="a.u.").images(path)
    # The first of BART's dimensions runs fastest.
    truth = [images[:, :, 0, 0, 0, te, 0, 0, 0, 0, time] for time in range(2) for te in range(3)]
    assert np.array_equal(stack.x[0:6].numpy()[:, 0], truth)
    assert np.array_equal(BART(slices=[4, 5]).images(path).x[0:1].numpy()[0, 0], truth[4])
    with pytest.raises(UserError, match=r"without coils are taken as images, not a measurement"):
        BART().open(path, invsolve.make)


def test_command_line(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    path, _ = measured(tmp_path / "scan")
    code, out, err = cli("inspect", path)
    assert code == 0, err
    assert "(layout bart)" in out
    code, _, err = cli("reconstruct", path, "-o", tmp_path / "r.h5", "--strategy", "linear")
    assert code == 0, err
    code, _, err = cli("simulate", path, "-o", tmp_path / "s.h5", "--operator", "blur")
    assert code == 2
    assert "are k-space, not images; reconstruct it" in err


def test_what_is_damaged_or_does_not_fit(tmp_path: Path) -> None:
    path, kspace = measured(tmp_path / "scan")
    sets = pair(tmp_path / "sets", kspace[0].transpose(1, 2, 0)[:, :, None, :, None].repeat(2, 4))
    with pytest.raises(UserError, match="without MAPS; give coil maps as sensitivities="):
        BART().open(sets, invsolve.make)
    partial = kspace[0].transpose(1, 2, 0)[:, :, None].repeat(3, 2)
    partial[:9] = 0
    with pytest.raises(UserError, match="the readouts of volume 0 are measured in part"):
        BART().open(pair(tmp_path / "partial", partial), invsolve.make)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"scan\.cfl: has \d+ bytes, but its header says 64 x"):
        BART().open(path, invsolve.make)
    path.with_suffix(".hdr").write_text("# Dimensions\n4 -4\n")
    with pytest.raises(UserError, match=r"scan\.hdr: expected '# Dimensions' and up to 16 positive sizes"):
        BART().open(path, invsolve.make)
    path.unlink()
    with pytest.raises(UserError, match=r"scan\.cfl: no such file; BART's files come in pairs"):
        BART().open(path.with_suffix(".hdr"), invsolve.make)


def test_what_is_written_is_barts_format(tmp_path: Path) -> None:
    values = (RNG.normal(size=(3, 4, 1, 2)) + 1j * RNG.normal(size=(3, 4, 1, 2))).astype(np.complex64)
    write_cfl(tmp_path / "k.cfl", values)
    lines = (tmp_path / "k.hdr").read_text().splitlines()
    assert lines[0] == "# Dimensions"
    assert lines[1].split() == ["3", "4", "1", "2", *["1"] * 12]
    stored = np.fromfile(tmp_path / "k.cfl", "<c8")
    # The first axis runs fastest: number k is that of index (k % 3, k // 3 % 4, 0, k // 12).
    for k, number in enumerate(stored):
        assert number == values[k % 3, k // 3 % 4, 0, k // 12]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.cfl", "k.hdr"]


@pytest.mark.parametrize("channels", [1, 2])
def test_images_of_a_result_come_back(channels: int, tmp_path: Path) -> None:
    images = RNG.normal(size=(5, channels, 6, 7)).astype(np.float32)
    write_images(tmp_path / "recon", images)
    back = read_cfl(tmp_path / "recon.hdr")
    assert back.shape[:3] == (6, 7, 1)
    assert back.shape[13] == 5
    parts = np.stack([back.real, back.imag][:channels])
    assert np.array_equal(parts.reshape(channels, 6, 7, 5).transpose(3, 0, 1, 2), images)
    assert len(BART().images(tmp_path / "recon.cfl").x) == 5


def write_twice(path: Path) -> None:
    write_cfl(path, np.ones(3))
    write_cfl(path, np.ones(3))


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda p: write_cfl(p, np.zeros((2,) * 17)), "1 to 16 axes"),
        (lambda p: write_cfl(p, np.zeros((2, 0))), "hold numbers"),
        (lambda p: write_cfl(p, np.array(["a"])), "hold numbers"),
        (lambda p: write_images(p, np.zeros((2, 3, 4, 4))), "1 or 2 channels"),
        (write_twice, "exists"),
    ],
)
def test_what_cannot_be_written_is_one_line(write: Callable[[Path], object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as caught:
        write(tmp_path / "x.cfl")
    assert "\n" not in str(caught.value)
    write_cfl(tmp_path / "y", np.ones(3))
    write_cfl(tmp_path / "y", np.ones(4), overwrite=True)
    assert read_cfl(tmp_path / "y").size == 4


@pytest.mark.discrepant("False")  # maps from few points of noise a thousandth explain no data to within it
@pytest.mark.parametrize("given", [False, True])
def test_3d_kspace_is_cut_into_planes_along_the_readout(given: bool, tmp_path: Path) -> None:
    """Two volumes of 10 planes: each is the 2-D k-space of its part of the volume, and SENSE finds the volume."""
    read, rows, columns, coils = 10, 26, 24, 4
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (read, rows, columns)), indexing="ij")
    body = (grid[0] ** 2 + (grid[1] / 0.8) ** 2 + (grid[2] / 0.7) ** 2 < 1) * (1 + 0.5 * grid[0])
    volumes = np.stack([body, 0.5 * body[::-1]])
    angles = 2 * np.pi * np.arange(coils)[:, None, None, None] / coils
    maps = np.exp(-((grid[1] - np.sin(angles)) ** 2) - (grid[2] - np.cos(angles)) ** 2 + 1j * angles)
    maps /= np.linalg.norm(maps, axis=0)
    axes = (-3, -2, -1)
    kspace = np.fft.ifftshift(maps * volumes[:, None], axes)
    kspace = np.fft.fftshift(np.fft.fftn(kspace, axes=axes, norm="ortho"), axes)
    kspace += 1e-3 * (RNG.normal(size=kspace.shape) + 1j * RNG.normal(size=kspace.shape))
    mask = invsolve.kspace_mask("poisson-disc", (rows, columns), 2, 0.35).numpy()
    # BART's axes: (READ, PHS1, PHS2, COIL), and the volumes along SLICE.
    stored = (kspace * mask).transpose(2, 3, 4, 1, 0).reshape(read, rows, columns, coils, *[1] * 9, 2)
    sensitivities = str(pair(tmp_path / "maps", maps.transpose(1, 2, 3, 0))) if given else None
    scan = BART(real=False, sensitivities=sensitivities).open(pair(tmp_path / "scan", stored), invsolve.make)
    assert "10 planes (PHS1, PHS2) of each of 2 volumes" in " ".join(scan.notes)
    assert list(scan.volumes or ()) == [0] * read + [1] * read
    y = scan.y[0 : 2 * read].numpy()
    line = np.fft.ifft(np.fft.ifftshift(kspace * mask, 2), axis=2, norm="ortho")
    line = np.fft.fftshift(line, 2).transpose(0, 2, 1, 3, 4).reshape(y.shape)
    assert np.allclose(y, line, atol=1e-5)
    assert (scan.operator_for(13).mask.numpy() == mask).all()
    if given:
        assert np.allclose(scan.operator_for(13).coil_maps.numpy(), maps[:, 3], atol=1e-6)
    image = invsolve.reconstruct(scan, strategy="linear").mean.norm(dim=1).numpy().reshape(volumes.shape)
    inside = body > 0
    for k, truth in enumerate(volumes):
        middle = inside & (truth > 0)
        assert np.linalg.norm((image[k] - truth)[middle]) < 0.06 * np.linalg.norm(truth[middle])
