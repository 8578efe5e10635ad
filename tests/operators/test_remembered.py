"""What an operator remembers is forgotten when what it was computed from changes: in every operator, however it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import scipy.ndimage
import torch
from torch import Tensor

import invsolve
from invsolve.bench.matrix import Matrix
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.views import real_view
from tests.support.types import linear_operator, narrow, offered

SIZE = 8


class Own(LinearOperator):
    """A stranger's operator: y = weight * x, with the norm that is derived for it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def masked(seed: int) -> Tensor:
    return draw(seed, SIZE, SIZE) < 0.3 + 0.2 * seed


def columns(seed: int) -> Tensor:
    return (draw(seed, SIZE) < 0.4 + 0.2 * seed).expand(SIZE, SIZE).contiguous()


def maps(seed: int) -> Tensor:
    return torch.complex(draw(seed, 3, SIZE, SIZE), draw(seed + 5, 3, SIZE, SIZE)) * (1 + seed)


#: The operator made from the tensor that a seed gives, that tensor, and its name.
CASES: dict[str, tuple[Callable[[Tensor], LinearOperator], Callable[[int], Tensor], str]] = {
    "blur, circular": (lambda t: linear_operator("blur", kernel=t), lambda s: draw(s, 3, 3) * (1 + s), "kernel"),
    "blur, zero": (
        lambda t: linear_operator("blur", kernel=t, boundary="zero"),
        lambda s: draw(s, 3, 3) * (1 + s),
        "kernel",
    ),
    "inpainting": (lambda t: linear_operator("inpainting", mask=t), masked, "mask"),
    "mri, points": (lambda t: linear_operator("mri", mask=t), masked, "mask"),
    "mri, columns": (lambda t: linear_operator("mri", mask=t[0]), columns, "mask"),
    "mri, coils": (lambda t: linear_operator("mri", coil_maps=t), maps, "coil_maps"),
    "ct": (
        lambda t: with_weights(t),
        lambda s: offered(with_weights(None)).projector.rows_weight * (1 + s),
        "projector.rows_weight",
    ),
    "matrix": (Matrix, lambda s: draw(s, 5, SIZE).double() * (1 + s), "matrix"),
    "a stranger's": (Own, lambda s: draw(s, SIZE, SIZE) * (1 + s), "weight"),
}


def with_weights(weights: Tensor | None) -> LinearOperator:
    """CT whose line weights, and those of the transpose, are a multiple of Joseph's."""
    operator = invsolve.operator("ct", image_size=SIZE, angles=5)
    if weights is not None:
        stored = offered(operator).projector
        stored.columns_weight.mul_(weights.sum() / stored.rows_weight.sum())
        stored.rows_weight = weights
    return operator  # type: ignore[return-value]


def assigned(operator: LinearOperator, name: str, other: LinearOperator) -> None:
    for key, value in other.named_buffers():
        owner, _, buffer = key.rpartition(".")
        setattr(operator.get_submodule(owner), buffer, value.clone())


def written(operator: LinearOperator, name: str, other: LinearOperator) -> None:
    for key, value in other.named_buffers():
        operator.get_buffer(key).copy_(value)


def loaded(operator: LinearOperator, name: str, other: LinearOperator) -> None:
    operator.load_state_dict(other.state_dict())


def facts(operator: LinearOperator) -> dict[str, Tensor]:
    """All that operators remember, and what follows from it."""
    dtype = torch.complex64 if operator.complex_image else torch.float32
    shape = (1, SIZE) if isinstance(operator, Matrix) else (1, SIZE, SIZE)
    x = torch.randn(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(9))
    y = operator(x)
    told = {"forward": y, "norm": torch.tensor(operator.norm(y)), "prox": operator.prox(x.flip(0), y, 0.1)}
    told["baseline"] = operator.baseline(y, 0.1)
    if isinstance(operator, invsolve.MaskableOperator):
        told["groups"] = operator.group_index
    channels = (2, *shape[1:]) if operator.complex_image else shape
    problem = make_problem(None, operator, invsolve.Gaussian(0.1), y, channels, Scale())
    told["singular values"] = problem.svd().values.flatten().sort().values
    told["problem's norm"] = torch.tensor(problem.operator_norm())
    return told


@pytest.mark.parametrize("change", [assigned, written, loaded], ids=["assigned", "copy_", "load_state_dict"])
@pytest.mark.parametrize("name", CASES)
def test_a_changed_operator_is_the_one_made_anew(name: str, change: Callable[..., None]) -> None:
    make, tensor, buffer = CASES[name]
    operator, other = make(tensor(0)), make(tensor(1))
    before = facts(operator)
    change(operator, buffer, other)
    wanted = facts(other)
    after = facts(operator)
    assert not torch.equal(before["forward"], after["forward"])
    for key, value in wanted.items():
        torch.testing.assert_close(after[key], value, msg=partial("{}: {}".format, key))


def test_a_swapped_kernel_is_scipys_convolution_with_it() -> None:
    x = draw(0, 1, 1, 12, 12)
    operator = invsolve.operator("blur", kernel=draw(1, 3, 5))
    operator(x), operator.norm(x)
    operator.kernel = draw(2, 5, 3)
    wanted = scipy.ndimage.convolve(x[0, 0].numpy(), draw(2, 5, 3).numpy(), mode="wrap")
    torch.testing.assert_close(operator(x)[0, 0], torch.from_numpy(wanted), atol=1e-5, rtol=0)


def test_a_view_notices_a_change_inside_it() -> None:
    operator = linear_operator("blur", kernel=torch.ones(1, 1), boundary="zero")
    stacked = invsolve.stack([operator, 2.0 * operator])
    stacked.image_shape = (1, SIZE, SIZE)
    operator.image_shape = (1, SIZE, SIZE)
    assert stacked.norm() == pytest.approx(5**0.5, rel=1e-3)
    operator.kernel.mul_(3)
    assert stacked.norm() == pytest.approx(3 * 5**0.5, rel=1e-3)
    scaled = 2.0 * operator
    assert scaled.norm() == pytest.approx(6, rel=1e-3)
    scaled.factor = 4.0
    assert scaled.norm() == pytest.approx(12, rel=1e-3)


def test_gradients_in_the_kernel_can_be_taken_twice() -> None:
    operator = invsolve.operator("blur", kernel=draw(0, 3, 3))
    x = draw(1, 2, 1, SIZE, SIZE)
    operator(x)
    operator.kernel.requires_grad_()
    slopes = [torch.autograd.grad((operator(x) ** 2).sum(), narrow(torch.Tensor, operator.kernel))[0] for _ in range(2)]
    assert torch.equal(*slopes)
    step = torch.zeros(3, 3)
    step[1, 2] = 1e-2
    with torch.no_grad():
        higher, lower = ((invsolve.operator("blur", kernel=draw(0, 3, 3) + s * step)(x) ** 2).sum() for s in (1, -1))
    torch.testing.assert_close(slopes[0][1, 2], (higher - lower) / 2e-2, atol=1e-2, rtol=1e-3)


def test_it_is_remembered_while_nothing_changes_and_by_no_copy() -> None:
    operator = Own(draw(0, SIZE, SIZE))
    made = []
    for _ in range(3):
        operator.remembered("once", lambda: made.append(1))
    assert len(made) == 1
    copy.deepcopy(operator).remembered("once", lambda: made.append(1))
    assert len(made) == 2


def test_the_small_matrix_of_a_real_view_is_kept_by_the_operator_inside() -> None:
    operator = invsolve.operator("mri", coil_maps=maps(0))
    made = []
    for channels in (1, 2, 1, 2):
        real_view(operator, channels).remembered("dense", lambda: made.append(1))
    assert len(made) == 2
