"""Simulate, reconstruct, evaluate, report: the whole way of every kind of image, its score against one by NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.results import write_result
from tests.support.types import Cli

WITH = ("--strategy", "diffpir", "--set", "steps=3", "--samples", 2)
WITHOUT = ("--strategy", "tv", "--set", "steps=20")


def smooth(*shape: int) -> np.ndarray:
    """Bumps between 0 and 1."""
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return np.abs(np.sin(sum((k + 1) * axis for k, axis in enumerate(axes))))


REAL = np.stack([smooth(1, 16, 18), smooth(1, 16, 18)[..., ::-1]])
COMPLEX = REAL * np.exp(1j * np.linspace(0, 4, 18))
PARTS = np.concatenate([COMPLEX.real, COMPLEX.imag], 1)
SQUARE = COMPLEX[..., :16]

#: Images, their unit, the operator that measures them, and how they are reconstructed.
KINDS: dict[str, tuple[np.ndarray, str, tuple[object, ...], tuple[object, ...]]] = {
    "grey": (REAL, "", ("blur", "--set", "sigma=1.0"), ("--prior", "natural", *WITH)),
    "complex": (SQUARE, "", ("mri", "--set", "acceleration=2"), ("--prior", "mr-complex-128", *WITH)),
    "two channels": (PARTS[..., :16], "", ("mri", "--set", "acceleration=2"), ("--prior", "mr-complex-128", *WITH)),
    "complex, real prior": (SQUARE, "", ("mri", "--set", "acceleration=2"), ("--prior", "mr-128", *WITH)),
    "complex, no prior": (SQUARE, "", ("mri", "--set", "acceleration=2"), WITHOUT),
    "colour": (smooth(2, 3, 16, 18), "", ("blur", "--set", "sigma=1.0"), WITHOUT),
    "HU": (1000 * REAL[..., :16] - 900, "HU", ("ct", "--set", "angles=12"), ("--prior", "ct-128", *WITH)),
    "volume of items": (
        smooth(3, 1, 16, 18),
        "",
        ("blur", "--set", "sigma=1.0"),
        ("--strategy", "tv-3d", *WITHOUT[2:]),
    ),
    "items of volumes": (smooth(2, 1, 3, 12, 14), "", ("double",), WITHOUT),
}

#: An operator of images with any number of axes: the built-in ones have two.
PLUGIN = '''
"""Twice the image."""
import invsolve


class Double(invsolve.LinearOperator):
    """y = 2 x."""

    name = "double"

    def forward(self, x):
        return 2 * x

    def adjoint(self, y):
        return 2 * y


@invsolve.hookimpl
def invsolve_operators():
    return {"double": Double}
'''

#: Kinds that are also drawn as a sheet, which takes longest.
DRAWN = ("complex", "colour", "items of volumes")


def expected_psnr(mean: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the items; complex errors by their modulus, against the largest modulus."""
    if truth.shape[1] == 2:
        truth = truth[:, :1] + 1j * truth[:, 1:]
    if np.iscomplexobj(truth) and mean.shape[1] == 2:
        mean = mean[:, :1] + 1j * mean[:, 1:]
    each = tuple(range(1, truth.ndim))
    span = np.abs(truth).max() if np.iscomplexobj(truth) else np.ptp(truth, axis=each).max()
    return float(np.mean(10 * np.log10(span**2 / (np.abs(mean - truth) ** 2).mean(each))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way(kind: str, tmp_path: Path, cli: Cli) -> None:
    images, unit, operator, how = KINDS[kind]
    paths = {name: tmp_path / f"{name}.h5" for name in ("truth", "scan", "recon")}
    with h5py.File(paths["truth"], "w") as file:
        stored = file.create_dataset("x", data=images.astype("c8" if np.iscomplexobj(images) else "f4"))
        stored.attrs["unit"] = unit
    more: tuple[object, ...] = ()
    if operator == ("double",):
        (tmp_path / "double.py").write_text(PLUGIN)
        more = ("--plugin", tmp_path / "double.py")
    sigma = 0.01 if unit != "HU" else 100.0
    for arguments in (
        ("simulate", paths["truth"], "-o", paths["scan"], "--operator", *operator, "--noise", f"gaussian:{sigma}"),
        ("reconstruct", paths["scan"], "-o", paths["recon"], *how),
        ("report", paths["recon"], "-o", tmp_path / "report.html"),
        *([("report", paths["recon"], "-o", tmp_path / "report.png")] if kind in DRAWN else []),
    ):
        code, _, err = cli(*arguments, *more)
        assert code == 0, err
    with h5py.File(paths["recon"]) as file:
        mean, carried = file["mean"][:], file["truth"][:]
        assert file.attrs["unit"] == unit or not unit
    np.testing.assert_allclose(carried, images, rtol=1e-6, atol=1e-6)
    scores = []
    for other in ((), ("--truth", paths["truth"])):
        code, out, err = cli("evaluate", paths["recon"], "--json", *other)
        assert code == 0, err
        scores.append(json.loads(out)["mean"])
    assert scores[0] == scores[1]
    assert scores[0]["psnr"] == pytest.approx(expected_psnr(mean, images), abs=1e-3)
    assert set(scores[0]) - {"ssim"} == {"psnr", "nrmse"} | (
        {"coverage_50", "coverage_90"} if WITH[0] == how[2] else set()
    )
    page = (tmp_path / "report.html").read_text()
    # A page scores the slices of volumes one by one.
    assert "PSNR" in page
    assert kind == "items of volumes" or f"{scores[0]['psnr']:.2f}" in page


def test_the_truth_is_read_as_it_is_told(tmp_path: Path, cli: Cli) -> None:
    recon = write_result(tmp_path / "recon.h5", items=2, shape=(1, 20, 16))
    with h5py.File(recon) as file:
        np.save(tmp_path / "truth.npy", file["truth"][:, 0].transpose(2, 1, 0))
    how = ("--layout", "array", "--read", "axes=column,row,item")
    _, carried, _ = cli("evaluate", recon, "--json")
    code, out, err = cli("evaluate", recon, "--json", "--truth", tmp_path / "truth.npy", *how)
    assert code == 0, err
    assert json.loads(out) == json.loads(carried)
    code, _, err = cli("evaluate", recon, *how)
    assert code == 2
    assert "give --truth IMAGES too" in err
    named = ("--truth-layout", "array", "--truth-read", "axes=column,row,item")
    code, _, err = cli("report", recon, "-o", tmp_path / "r.html", "--truth", tmp_path / "truth.npy", *named)
    assert code == 0, err
    code, _, err = cli("report", recon, "-o", tmp_path / "s.html", *named)
    assert code == 2
    assert "give --truth IMAGES too" in err
