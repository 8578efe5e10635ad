"""Other people's operators through `adapt`, and ours as SciPy's: the same numbers, exact adjoints, one line where it is none."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator, svds
from torch import Tensor, nn

import invsolve
from invsolve import registry
from invsolve.testing import check_operator
from invsolve.testing.operators import dense

PAGE = Path(__file__).parents[2] / "docs" / "adapting.md"
PLUGINS = {
    code[3:].partition(":")[0]: code for code in re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
}
#: What does not hold of a library, whatever is wrapped, and why.
SINGLE = "the library computes in single precision"
KNOWN = {
    "mrinufft": {
        **{f"{name}, 20x20 float64": SINGLE for name in ("linear", "adjoint", "adjoint of its own data")},
        "dense matrix": SINGLE,
        "survives pickling": "a compiled plan cannot be copied",
    },
    "astra": {
        **{f"{name}, 16x16 float64": SINGLE for name in ("linear", "adjoint", "adjoint of its own data")},
        "survives pickling": "a handle of the toolbox cannot be copied",
    },
    "deepinv": {"survives pickling": "its noise model holds a lambda"},
}
MATRIX = np.random.default_rng(0).normal(size=(7, 12))


def imported(name: str) -> Any:
    """A library, or a skip where it is absent or does not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in ("deepinv", "mrinufft"):
            declare_torchvision()
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"no {name}: {error}")


def declare_torchvision() -> None:
    """Name the operators of a torchvision that does not fit torch: it is imported beside them, and not called."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
            for full in (name, f"_{name}_backward"):
                library.define(f"{full}(Tensor x) -> Tensor")
        KEPT.append(library)
    except ImportError:
        pass


KEPT: list[Any] = []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", PLUGINS)
def test_the_pages_plugin_of_each_library_holds_what_operators_promise(library: str, tmp_path: Path) -> None:
    imported(library)
    file = tmp_path / f"{library}_plugin.py"
    file.write_text(PLUGINS[library])
    registry.load_file(file)
    name = re.search(r'name = "(.*)"', PLUGINS[library]).group(1)
    cls: Any = registry.find("operator", name)
    operator = invsolve.operator(name, **cls.examples[0])
    report = check_operator(operator, expected=KNOWN.get(library, {}))
    assert report, report


def test_there_is_a_plugin_for_each_library_of_the_page() -> None:
    assert set(PLUGINS) == {"pylops", "sigpy", "odl", "mrinufft", "astra", "deepinv"}


@pytest.mark.parametrize(
    "given",
    [
        MATRIX,
        scipy.sparse.csr_array(MATRIX),
        aslinearoperator(MATRIX),
        aslinearoperator(scipy.sparse.csr_array(MATRIX)),
    ],
    ids=["array", "sparse", "scipy", "scipy of sparse"],
)
def test_a_matrix_is_itself_and_its_transpose(given: object) -> None:
    operator = invsolve.adapt(given, image_shape=(1, 3, 4))
    assert isinstance(operator, invsolve.LinearOperator)
    forward, adjoint = dense(operator, (1, 3, 4))
    torch.testing.assert_close(forward, torch.from_numpy(MATRIX))
    torch.testing.assert_close(adjoint, torch.from_numpy(MATRIX.T))
    report = check_operator(operator)
    assert report, report


@pytest.mark.parametrize("complex_image", [True, False])
def test_a_complex_matrix_takes_complex_or_real_images(complex_image: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 6)) + 1j * rng.normal(size=(5, 6))
    operator = invsolve.adapt(matrix, image_shape=(1, 2, 3), complex_image=complex_image)
    x = torch.randn(2, 1, 2, 3, dtype=torch.complex128 if complex_image else torch.float64)
    y = torch.randn(2, 5, dtype=torch.complex128)
    np.testing.assert_allclose(operator(x), x.numpy().reshape(2, 6) @ matrix.T, atol=1e-12)
    back = y.numpy() @ matrix.conj()
    assert isinstance(operator, invsolve.LinearOperator)
    np.testing.assert_allclose(operator.adjoint(y).flatten(1), back if complex_image else back.real, atol=1e-12)
    assert check_operator(operator)


def test_the_gradient_is_the_adjoint_of_the_residual() -> None:
    operator = invsolve.adapt(MATRIX, image_shape=(1, 3, 4))
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    operator(x).square().sum().backward()
    wanted = 2 * x.detach().numpy().reshape(2, 12) @ MATRIX.T @ MATRIX
    np.testing.assert_allclose(x.grad.flatten(1), wanted, atol=1e-12)


def fourier(x: Any) -> Any:
    return np.fft.fft2(x, norm="ortho")


def inverse_fourier(y: Any) -> Any:
    return np.fft.ifft2(y, norm="ortho")


def test_numpy_functions_of_complex_images() -> None:
    operator = invsolve.adapt(fourier, inverse_fourier, image_shape=(1, 4, 6), arrays="numpy", complex_image=True)
    x = torch.randn(3, 1, 4, 6, dtype=torch.complex128)
    np.testing.assert_allclose(operator(x), np.fft.fft2(x.numpy(), norm="ortho"), atol=1e-14)
    report = check_operator(operator)
    assert report, report


def doubled_in_place(x: Any) -> Any:
    x *= 2
    return x


def doubled_read_only(x: Any) -> Any:
    y = (2 * x).astype(">f8")
    y.flags.writeable = False
    return y


@pytest.mark.parametrize("function", [doubled_in_place, doubled_read_only])
def test_code_that_writes_to_its_input_or_gives_odd_arrays_does_no_harm(function: Any) -> None:
    operator = invsolve.adapt(function, function, image_shape=(1, 3, 4), arrays="numpy")
    x = torch.rand(2, 1, 3, 4)
    before = x.clone()
    y = operator(x)
    y += 1
    assert torch.equal(x, before)
    assert torch.equal(y, 2 * before + 1)
    identity = invsolve.adapt(aslinearoperator(scipy.sparse.eye_array(12)), image_shape=(1, 3, 4))
    same = identity(x)
    same += 1
    assert torch.equal(x, before)


class Attenuated(nn.Module):
    """A module with a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor.to(x.dtype) * x.cumsum(-1)


def test_torch_functions_derive_what_is_not_given() -> None:
    linear = invsolve.adapt(Attenuated(), image_shape=(1, 4, 5))
    assert isinstance(linear, invsolve.LinearOperator)
    forward, adjoint = dense(linear, (1, 4, 5))
    one = torch.tril(torch.full((5, 5), 0.5, dtype=torch.float64))
    torch.testing.assert_close(forward.detach(), torch.block_diag(one, one, one, one))
    torch.testing.assert_close(adjoint.detach(), forward.detach().T)
    bent = invsolve.adapt(torch.tanh, image_shape=(1, 4, 5), linear=False)
    assert not isinstance(bent, invsolve.LinearOperator)
    report = check_operator(bent)
    assert report, report


def test_what_is_an_operator_already_is_handed_back() -> None:
    operator = invsolve.operator("blur", sigma=1.0)
    assert invsolve.adapt(operator) is operator


def slices(x: Any) -> Any:
    return x[..., ::2]


@pytest.mark.parametrize(
    ("given", "settings", "line"),
    [
        (MATRIX, {}, r"vectors of 12 numbers; say which images"),
        (MATRIX, {"image_shape": (1, 5, 5)}, r"takes 12 numbers, which images of image_shape=\(1, 5, 5\) have not"),
        (slices, {}, "say which images it takes"),
        (slices, {"image_shape": (1, 4, 4), "arrays": "numpy"}, "give its adjoint"),
        (torch.square, {"image_shape": (1, 4, 4)}, r"square is not what .*A\(2a - b\) is not 2A\(a\) - A\(b\)"),
        (7, {}, "no operator that is known here"),
        (nn.Identity(), {}, "say which images"),
        (
            LinearOperator(shape=(12, 12), matvec=lambda v: 2 * v, rmatvec=lambda v: v),
            {"image_shape": (1, 3, 4)},
            "not the",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_in_one_line(given: object, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line) as error:
        invsolve.adapt(given, **settings)
    assert "\n" not in str(error.value)


def test_an_unmatched_pair_is_taken_unchecked_on_request() -> None:
    unmatched = LinearOperator(shape=(12, 12), matvec=lambda v: 2 * v, rmatvec=lambda v: v)
    operator = invsolve.adapt(unmatched, image_shape=(1, 3, 4), check=False)
    assert float(operator(torch.ones(1, 1, 3, 4)).sum()) == 24.0


def test_an_adjoint_that_is_slightly_wrong_is_found_on_its_own_data() -> None:
    # On random data of n numbers such an error is smaller by sqrt(n), and below the limit.
    n = 300
    scaled = LinearOperator(shape=(n * n, n * n), matvec=lambda v: v, rmatvec=lambda v: 1.0005 * v, dtype=np.float32)
    with pytest.raises(invsolve.UserError, match=r"relative error 5.0e-04"):
        invsolve.adapt(scaled, image_shape=(1, n, n))


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("blur", {"sigma": 0.7, "boundary": "zero"}, (1, 5, 6)),
        ("ct", {"image_size": 6, "angles": 4}, (1, 6, 6)),
        ("mri", {"image_size": 6, "acceleration": 2}, (1, 6, 6)),
    ],
)
def test_ours_as_scipys_and_back_is_ours(name: str, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    operator = invsolve.operator(name, **settings)
    assert isinstance(operator, invsolve.LinearOperator)
    ours = operator.as_scipy(shape)
    forward, adjoint = dense(operator, shape)
    np.testing.assert_allclose(ours @ np.eye(ours.shape[1]), forward, atol=1e-12)
    np.testing.assert_allclose(ours.H @ np.eye(ours.shape[0]), adjoint, atol=1e-12)
    np.testing.assert_allclose(ours @ np.ones(ours.shape[1]), forward.sum(1), atol=1e-12)
    again = invsolve.adapt(ours, image_shape=shape)
    assert again.complex_image == operator.complex_image
    assert isinstance(again, invsolve.LinearOperator)
    torch.testing.assert_close(dense(again, shape)[0], forward)
    largest = svds(ours, k=1, return_singular_vectors=False)[0]
    assert float(largest) == pytest.approx(float(torch.linalg.matrix_norm(forward, 2)), rel=1e-9)


class HalfFourier(invsolve.LinearOperator):
    """Real images, complex data."""

    image_shape = (1, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho")[:, 0]


def test_real_images_with_complex_data_are_complex_linear_in_scipy() -> None:
    ours = HalfFourier().as_scipy()
    matrix = ours @ np.eye(16)
    assert matrix.shape == (12, 16)
    np.testing.assert_allclose(ours.H @ np.eye(12), matrix.conj().T, atol=1e-12)
    x = np.random.default_rng(0).normal(size=16) + 1j
    np.testing.assert_allclose(ours @ x, matrix @ x, atol=1e-12)
    y = ours @ np.ones(16) + 1j
    np.testing.assert_allclose(ours.rmatvec(y).real, HalfFourier().adjoint(torch.from_numpy(y).view(1, 4, 3)).flatten())


def test_the_adapters_import_no_library() -> None:
    for module in ("adapting", "libraries"):
        text = Path(importlib.import_module(f"invsolve.api.{module}").__file__ or "").read_text()
        assert not re.findall(rf"^\s*(?:import|from) (?:{'|'.join(PLUGINS)})", text, re.M)
