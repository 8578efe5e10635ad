"""What users hand over from Python: arrays of any kind are the same numbers, and what cannot be is one line with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import invsolve
from invsolve.operators.blur.uniform import Blur
from invsolve.operators.ct.operator import CT
from invsolve.operators.inpainting import Inpainting
from invsolve.operators.mri.cartesian import MRI
from tests.support.types import linear_operator, offered

SIZE = 8
NOISE = invsolve.Gaussian(0.1)


def truth() -> np.ndarray:
    """Whole numbers, so that every type holds them exactly."""
    return np.random.default_rng(0).integers(0, 8, (2, 1, SIZE, SIZE)).astype(np.float64)


def prior() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=SIZE)


def blur() -> invsolve.LinearOperator:
    return linear_operator("blur", sigma=0.8)


DTYPES = [">f4", ">f8", ">i2", "<u2", ">u2", "f2", "i4", ">i8", "u1", "u4", "u8", "longdouble"]
KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    **{name: partial(np.ndarray.astype, dtype=name) for name in DTYPES},
    "negative strides": lambda x: x[..., ::-1].copy()[..., ::-1],
    "fortran": np.asfortranarray,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "masked array without masked values": lambda x: np.ma.masked_array(x, mask=False),
    "half tensor": lambda x: torch.from_numpy(x).half(),
    "bfloat16 tensor": lambda x: torch.from_numpy(x).bfloat16(),
    "uint8 tensor": lambda x: torch.from_numpy(x).byte(),
    "tensor with gradient": lambda x: torch.from_numpy(x).requires_grad_(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_arrays_are_the_same_numbers_in_every_form(kind: str) -> None:
    given = KINDS[kind](truth())
    exact = invsolve.simulate(truth(), blur(), invsolve.Gaussian(0.0))
    assert torch.equal(invsolve.simulate(given, blur(), invsolve.Gaussian(0.0)), exact)
    options: dict[str, Any] = {"noise": NOISE, "strategy": "linear", "scale": (0, 8)}
    wanted = invsolve.reconstruct(truth(), blur(), **options).mean
    assert torch.equal(invsolve.reconstruct(given, blur(), **options).mean, wanted)
    measurement = invsolve.Measurement(given, blur(), NOISE)
    assert torch.equal(invsolve.reconstruct(measurement, strategy="linear", scale=(0, 8)).mean, wanted)
    likely = invsolve.log_likelihood(prior(), given, steps=1, exact=True).nats
    assert torch.allclose(likely, invsolve.log_likelihood(prior(), truth(), steps=1, exact=True).nats, rtol=1e-4)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "longdouble", ">i2", "u2", "u4", "u8"])
def test_parameters_of_operators_in_every_form(dtype: str) -> None:
    kernel = np.arange(6).reshape(2, 3)
    own = offered(invsolve.operator("blur", kernel=kernel.astype(dtype)))
    assert torch.equal(own.kernel, torch.from_numpy(kernel).float())
    mask = invsolve.operator("inpainting", mask=(kernel > 2).astype(dtype))
    assert torch.equal(offered(mask).mask, torch.from_numpy(kernel > 2))
    degrees = invsolve.operator("ct", image_size=np.int64(4), angles=np.array([0, 90]).astype(dtype))
    assert offered(degrees).geometry.angles == (0.0, 90.0)


def test_classes_take_arrays_and_lists_as_their_names_do() -> None:
    mask = np.array([[True, False], [False, True]])
    masks: list[Any] = [mask, mask.tolist(), torch.from_numpy(mask)]
    for given in masks:
        assert torch.equal(Inpainting(given).mask, torch.from_numpy(mask))
        assert torch.equal(MRI(given).mask, torch.from_numpy(mask))
        assert Blur(given).kernel.sum() == 2
    counts: list[Any] = [2, np.int64(2), [0.0, 90.0], np.array([0.0, 90.0])]
    for angles in counts:
        assert CT(4, angles).geometry.angles == (0.0, 90.0)


def _masked() -> Any:
    return np.ma.masked_array(truth(), mask=truth() > 6)


def _reconstruct(**changes: Any) -> Callable[[], object]:
    """A reconstruction with some of its arguments replaced."""
    return lambda: invsolve.reconstruct(
        **{"y": truth(), "operator": blur(), "prior": prior(), "noise": NOISE, **changes}
    )


class Squared(invsolve.Operator):
    """Every other column of the square."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x**2)[..., ::2]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "masked": (_reconstruct(y=_masked()), r"masked array with \d+ masked values; fill them"),
    "masked truth": (lambda: invsolve.simulate(_masked(), blur(), NOISE), "masked array"),
    "objects": (_reconstruct(y=np.array([[None]])), "holds object, expected numbers"),
    "empty": (_reconstruct(y=truth()[:0]), "is empty; give at least one item"),
    "empty truth": (lambda: invsolve.simulate(truth()[..., :0], blur(), NOISE), "is empty"),
    "one axis": (_reconstruct(y=np.ones(5)), r"one item is y\[None\]"),
    "no array": (_reconstruct(y=None), "y must be a tensor or array"),
    "complex": (_reconstruct(y=truth() + 1j), r"y is complex, but operator 'blur' .* torch.cat\(\[y.real, y.imag\]\)"),
    "noise": (_reconstruct(noise=0.05), r"noise=invsolve.Gaussian\(0.05\)"),
    "noise class": (_reconstruct(noise=invsolve.Gaussian), "noise is the class Gaussian, expected one made of it"),
    "strategy class": (_reconstruct(strategy=type(invsolve.strategy("dps"))), r"invsolve.strategy\('dps', ...\)"),
    "strategy": (_reconstruct(strategy=None), "strategy must be an invsolve.Strategy or the name of one, got None"),
    "module": (
        _reconstruct(prior=nn.Conv2d(1, 1, 3)),
        r"got Conv2d; make one of a network: invsolve.prior_from\(module",
    ),
    "function": (_reconstruct(prior=lambda x, sigma: x), r"invsolve.prior_from\(module"),
    "prior class": (_reconstruct(prior=type(prior())), r"invsolve.load_prior\('gaussian-field', ...\)"),
    "prior": (_reconstruct(prior=42), "got 42"),
    "no prior": (lambda: invsolve.sample(None), "got None"),  # type: ignore[arg-type]
    "operator class": (_reconstruct(operator=type(blur())), r"invsolve.operator\('blur', ...\)"),
    "operator": (_reconstruct(operator=nn.Conv2d(1, 1, 3)), "subclass invsolve.LinearOperator"),
    "samples": (_reconstruct(samples=2.0), "samples must be a whole number, got 2.0"),
    "seed": (_reconstruct(seed=1.5), "seed must be a whole number, got 1.5"),
    "seed of the noise": (lambda: invsolve.simulate(truth(), blur(), NOISE, seed=1.5), "seed must be a whole number"),  # type: ignore[arg-type]
    "negative seed": (lambda: invsolve.simulate(truth(), blur(), NOISE, seed=-1), "seed must be at least 0"),
    "count": (lambda: invsolve.sample(prior(), count=1.5), "count must be a whole number"),  # type: ignore[arg-type]
    "half precision": (
        lambda: blur()(torch.ones(1, 1, 4, 4).half()),
        r"got torch.float16 on the cpu; give x.float\(\)",
    ),
    "whole numbers": (
        lambda: blur()(torch.ones(1, 1, 4, 4).int()),
        "takes tensors of float32 or float64, got torch.int32",
    ),
    "dtype": (_reconstruct(dtype="float16"), "dtype must be float32 or float64"),
    "complex truth": (
        lambda: invsolve.simulate(truth() + 1j, Squared(), NOISE),
        "is not linear; give its modulus or real part",
    ),
    "nonlinear": (
        _reconstruct(y=truth()[..., ::2], operator=Squared(), strategy="dds"),
        "mmps, dps-fitted, red-diff, daps, ... would do",
    ),
    "NaN in a mask": (lambda: invsolve.operator("mri", mask=[1.0, float("nan")]), "mask has 1 NaN or infinite entries"),
    "soft mask": (lambda: invsolve.operator("inpainting", mask=[[0.0, 0.5, 1.0]]), "mask has values from 0.5 to 1"),
    "half a mask": (lambda: invsolve.operator("mri", mask=[0.0, 0.5]), "give mask > 0, or a threshold"),
    "complex mask": (lambda: invsolve.operator("inpainting", mask=np.ones((2, 2)) + 1j), "mask is complex"),
    "complex kernel": (lambda: invsolve.operator("blur", kernel=np.ones((2, 2)) + 1j), "kernel is complex"),
    "kernel": (lambda: invsolve.operator("blur", kernel=[[1.0, float("inf")]]), "kernel is not finite"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_line_with_a_remedy(what: str) -> None:
    attempt, says = REFUSED[what]
    with pytest.raises(invsolve.UserError, match=says) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_pictures_of_masks_are_masks() -> None:
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    assert torch.equal(
        offered(linear_operator("inpainting", mask=mask)).mask, torch.tensor([[False, True], [True, False]])
    )


@pytest.mark.parametrize("given", [float("nan"), float("inf"), 7.0])
@pytest.mark.filterwarnings("ignore::invsolve.api.discrepancy.DiscrepancyWarning")
def test_what_stands_where_nothing_is_measured_is_no_data(given: float) -> None:
    """NaN there was refused although the mask says so, and a number counted as residual."""
    mask = np.random.default_rng(1).random((SIZE, SIZE)) < 0.5
    operator = linear_operator("inpainting", mask=mask)
    y = invsolve.simulate(truth(), operator, NOISE)
    options: dict[str, Any] = {"noise": NOISE, "strategy": invsolve.strategy("dps", steps=10), "scale": (0, 8)}
    wanted = invsolve.reconstruct(y, operator, prior(), **options)
    y[:, :, torch.from_numpy(~mask)] = given
    result = invsolve.reconstruct(y, operator, prior(), **options)
    assert torch.equal(result.mean, wanted.mean)
    assert torch.equal(result.diagnostics["discrepancy"], wanted.diagnostics["discrepancy"])


@pytest.mark.parametrize("name", ["blur", "ct", "downsample", "inpainting"])
def test_complex_images_go_through_real_operators_part_by_part(name: str) -> None:
    operator = {
        "blur": blur,
        "ct": lambda: linear_operator("ct", image_size=SIZE, angles=5),
        "downsample": lambda: linear_operator("downsample", factor=2, kernel="bicubic"),
        "inpainting": lambda: linear_operator("inpainting", fraction=0.5, image_size=SIZE),
    }[name]()
    x = torch.complex(*torch.randn(2, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    y = torch.complex(operator(x.real), operator(x.imag))
    torch.testing.assert_close(operator(x), y)
    torch.testing.assert_close(operator.adjoint(y), torch.complex(operator.adjoint(y.real), operator.adjoint(y.imag)))
    solution = operator.prox(x, y, 0.3)
    parts = [operator.prox(a, b, 0.3) for a, b in ((x.real, y.real), (x.imag, y.imag))]
    torch.testing.assert_close(solution, torch.complex(*parts), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(invsolve.simulate(x, operator, invsolve.Gaussian(0.0)), y)


def test_kspace_of_a_blurred_image() -> None:
    """An operator of real images before one of complex images: both see complex ones."""
    both = linear_operator("mri", image_size=SIZE) @ blur()
    x = torch.complex(*torch.randn(2, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    blurred = torch.complex(blur()(x.real), blur()(x.imag)).numpy()
    shifted = np.fft.fft2(np.fft.ifftshift(blurred, (-2, -1)), norm="ortho")
    np.testing.assert_allclose(both(x).numpy(), np.fft.fftshift(shifted, (-2, -1)), atol=1e-5)
    y = invsolve.simulate(x, both, invsolve.Gaussian(1e-3))
    result = invsolve.reconstruct(y, both, noise=invsolve.Gaussian(1e-3), strategy="linear")
    assert result.mean.shape == (1, 2, SIZE, SIZE)
    assert float((result.mean - torch.cat([x.real, x.imag], 1)).abs().max()) < 0.1


@pytest.mark.parametrize("strategy", ["dps", "moment"])
@pytest.mark.filterwarnings("ignore::invsolve.api.discrepancy.DiscrepancyWarning")
def test_inference_mode_around_everything_changes_nothing(strategy: str) -> None:
    def run() -> torch.Tensor:
        operator = invsolve.operator("inpainting", fraction=0.5, image_size=SIZE)
        noise = invsolve.Gaussian(torch.tensor(0.1))
        y = invsolve.simulate(torch.from_numpy(truth() / 8), operator, noise)
        assert offered(prior()).denoise(y, torch.tensor(0.1)).shape == y.shape
        method = invsolve.strategy(strategy, steps=10)
        return invsolve.reconstruct(y, operator, prior(), noise=noise, strategy=method).samples

    wanted = run()
    with torch.inference_mode():
        got, likely = run(), invsolve.log_likelihood(prior(), truth() / 8, steps=2).nats
        assert not got.is_inference()
    assert torch.equal(got, wanted)
    assert torch.equal(likely, invsolve.log_likelihood(prior(), truth() / 8, steps=2).nats)


def test_a_network_is_a_prior_as_the_readme_says() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    made = invsolve.prior_from(Nothing(), parametrisation="epsilon", schedule="linear")
    assert made.event_shape == (1, None, None)
    x = torch.randn(1, 1, 4, 4)
    # No noise in it, so the image is what is there.
    assert torch.allclose(made.denoise(x, torch.tensor(0.5)), x, atol=1e-5)


PLUGIN = '''
"""Every other column of the square of an image, of any size."""
from collections.abc import Mapping

import torch

import invsolve


class Halved(invsolve.Operator):
    """Every other column of the square."""

    name = "halved-square"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x**2)[..., ::2]


@invsolve.hookimpl
def invsolve_operators() -> Mapping[str, type]:
    return {"halved-square": Halved}
'''


def test_a_scan_says_how_large_its_images_are_where_the_operator_does_not(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    from invsolve.datasets import hdf5

    (tmp_path / "halved.py").write_text(PLUGIN)
    hdf5.write_images(tmp_path / "x.h5", torch.from_numpy(truth() / 8).float())
    plugin = ["--plugin", tmp_path / "halved.py"]
    scan, out = tmp_path / "y.h5", tmp_path / "r.h5"
    code, _, err = cli("simulate", tmp_path / "x.h5", "-o", scan, "--operator", "halved-square", *plugin)
    assert code == 0, err
    code, _, err = cli(
        *("reconstruct", scan, "-o", out, "--strategy", "daps", "--prior", "natural", "--set", "steps=2", *plugin)
    )
    assert code == 0, err
    assert hdf5.read_result(out).mean.shape == (2, 1, SIZE, SIZE)
