"""Views and algebra against the dense matrix: what a view hands on must belong to what it is, and nothing may get lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.problem import Calls
from invsolve.contracts.scale import Scale
from invsolve.contracts.views import InPhysicalUnits, real_view
from invsolve.engine.metering import metered
from invsolve.engine.volume import in_chunks
from invsolve.testing.operators import dense
from tests.support.types import offered

SIDE = 6
CPU = torch.device("cpu")


def mask() -> LinearOperator:
    return invsolve.operator("inpainting", fraction=0.6, image_size=SIDE)  # type: ignore[return-value]


def other() -> LinearOperator:
    return invsolve.operator("inpainting", fraction=0.3, image_size=SIDE, seed=1)  # type: ignore[return-value]


def blur(boundary: str = "circular") -> LinearOperator:
    operator = invsolve.operator("blur", kernel=torch.tensor([[0.1, 0.3], [0.2, 0.4]]), boundary=boundary)
    operator.image_shape = (1, SIDE, SIDE)
    return operator  # type: ignore[return-value]


def mri(coils: int = 0) -> LinearOperator:
    maps = torch.randn(coils, SIDE, SIDE, 2, generator=torch.Generator().manual_seed(0)) if coils else None
    return invsolve.operator("mri", mask=[1, 0, 1, 1, 0, 1], coil_maps=maps, image_size=None if coils else SIDE)  # type: ignore[return-value]


VIEWS: dict[str, Callable[[], Operator]] = {
    "scaled blur": lambda: -0.3 * blur(),
    "scaled zero blur": lambda: 2.5 * blur("zero"),
    "scaled mask": lambda: 3.0 * mask(),
    "scaled twice": lambda: 3.0 * (0.5 * blur()),
    "composition": lambda: mask() @ blur(),
    "sum": lambda: mask() + 0.5 * blur(),
    "sum of masks": lambda: mask() + other(),
    "stack": lambda: invsolve.stack([mask(), blur()]),
    "real part, one coil": lambda: real_view(mri(), 1),
    "real and imaginary part, one coil": lambda: real_view(mri(), 2),
    "real part, coils": lambda: real_view(mri(3), 1),
    "real and imaginary part, coils": lambda: real_view(mri(3), 2),
    "scaled, real and imaginary part": lambda: real_view(0.5 * mri(), 2),
    "scaled, real part": lambda: real_view(0.5 * mri(), 1),
    "in chunks": lambda: in_chunks(blur(), 2, CPU, CPU),
    "scaled in chunks": lambda: in_chunks(0.5 * mask(), 2, CPU, CPU),
    "iterated in chunks": lambda: in_chunks(blur("zero"), 2, CPU, CPU),
    "counting": lambda: metered(blur(), Calls()),
    "counting, scaled": lambda: metered(0.5 * blur("zero"), Calls()),
}


def made(name: str) -> tuple[LinearOperator, Tensor, tuple[int, ...], Tensor]:
    """The view in double precision, its real matrix, the image shape, and what it measures of five random images."""
    view = VIEWS[name]().double()
    assert isinstance(view, LinearOperator)
    assert view.image_shape is not None
    shape = tuple(view.image_shape)
    x = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix, _ = dense(view, shape)
    return view, matrix, shape, view(x)


def real(y: Tensor) -> Tensor:
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


@pytest.mark.parametrize("name", VIEWS)
def test_solves_and_closed_forms_are_those_of_the_matrix(name: str) -> None:
    view, matrix, shape, y = made(name)
    z = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rho = torch.tensor([0.02, 0.1, 0.5, 1.0, 3.0], dtype=torch.float64).view(5, 1, 1, 1)
    gram, eye = matrix.T @ matrix, torch.eye(matrix.shape[1], dtype=torch.float64)
    systems = gram + rho.view(5, 1, 1) * eye
    right = real(y) @ matrix
    tight = invsolve.CG(1e-10, 400)

    wanted = torch.linalg.solve(systems, right + rho.view(5, 1) * z.flatten(1))
    torch.testing.assert_close(view.prox(z, y, rho, tight).flatten(1), wanted, atol=1e-6, rtol=0)
    short = view.tikhonov(y, rho)
    if short is not None:
        torch.testing.assert_close(short.flatten(1), torch.linalg.solve(systems, right), atol=1e-6, rtol=0)
    torch.testing.assert_close(view.normal(z).flatten(1), z.flatten(1) @ gram, atol=1e-7, rtol=0)
    least = right @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-8)
    torch.testing.assert_close(view.pinv(y, tight).flatten(1), least, atol=1e-5, rtol=0)
    # The power iteration stops at a relative change of 1e-4, from below.
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert 0.98 * largest <= view.norm(y) <= largest * (1 + 1e-6)
    system = view.svd(shape, y)
    if system is not None:
        c = system.to_basis(z)
        torch.testing.assert_close(system.measurement_to_basis(view(z)), system.values * c, atol=1e-5, rtol=0)
        values = system.values.expand(1, *c.shape[1:]).flatten().sort().values
        torch.testing.assert_close(values, torch.linalg.svdvals(gram).sqrt().sort().values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        *(
            ("scaled blur", True),
            ("scaled twice", True),
            ("scaled mask", True),
            ("in chunks", True),
            ("counting", True),
        ),
        *(("scaled zero blur", False), ("real part, one coil", False), ("real and imaginary part, one coil", True)),
    ],
)
def test_closed_forms_are_not_dropped(name: str, closed: bool) -> None:
    view, _, shape, y = made(name)
    assert (view.tikhonov(y, 0.1) is not None) == closed
    assert (view.svd(shape, y) is not None) == (closed or name == "real part, one coil")


@pytest.mark.parametrize("name", VIEWS)
def test_what_was_never_measured_does_not_count_as_data(name: str) -> None:
    view, matrix, shape, y = made(name)
    measured = view.measured()
    seen = (matrix.abs().sum(1) > 1e-9).view(*y.shape[1:], -1).any(-1)
    expected = torch.ones_like(seen) if measured is None else measured.bool().expand(seen.shape)
    assert torch.equal(expected, seen)
    assert view.measurement_shape(shape) == tuple(y.shape[1:])
    assert view.image_shape_for(y.shape[1:], shape[0]) == shape


class Cube(Operator):
    """y = x^3, in "1/cm", of which the first row is not measured."""

    image_unit, name = "1/cm", "cube"

    def __init__(self) -> None:
        self.image_shape = (1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x**3 * self.measured()

    def measured(self) -> Tensor:
        return torch.tensor([0.0, 1.0, 1.0])[:, None] > 0


@pytest.mark.parametrize(
    "view",
    [lambda a: InPhysicalUnits(a, Scale(2.0, 1.0)), lambda a: in_chunks(a, 2, CPU, CPU), lambda a: metered(a, Calls())],
)
def test_views_of_nonlinear_operators_hand_on_what_they_do_not_change(view: Callable[[Operator], Operator]) -> None:
    inner = Cube()
    inner.parameters_given = {"power": 3}
    outer = view(inner)
    for name in ("image_shape", "image_unit", "name", "complex_image", "parameters_given"):
        assert getattr(outer, name) == getattr(inner, name)
    assert torch.equal(outer.measured(), inner.measured())  # type: ignore[arg-type]
    assert outer.measurement_shape((1, 3, 3)) == (1, 3, 3)


def test_scaled_and_composed_operators_keep_their_groups_but_not_their_name_in_files() -> None:
    inner = mask()
    for view in (2.0 * inner, inner @ blur()):
        assert isinstance(view, invsolve.MaskableOperator)
        assert torch.equal(offered(view).group_index, offered(inner).group_index)
        assert view.parameters_given is None
        assert view.name != inner.name


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_scale_is_refused(factor: float) -> None:
    with pytest.raises(invsolve.UserError, match="finite number other than 0"):
        factor * blur()


@pytest.mark.parametrize("power", [2, 3])
def test_the_tangent_is_the_jacobian(power: int) -> None:
    class Power(Operator):
        """y = sums of neighbours of x^power."""

        image_shape = (1, 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (x**power + x.roll(1, -1) ** power)[:, 0, :2]

    x = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = Power().linearise(x)
    assert isinstance(near, LinearOperator)
    slope = power * x ** (power - 1)
    d = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    forward = (slope * d + (slope * d).roll(1, -1))[:, 0, :2]
    torch.testing.assert_close(near(d), forward)
    v = torch.randn(forward.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([v, torch.zeros_like(v[:, :1])], 1)[:, None]
    torch.testing.assert_close(near.adjoint(v), slope * (padded + padded.roll(-1, -1)))
    both = [torch.autograd.functional.jacobian(Power(), x[k : k + 1]).reshape(8, 12) for k in range(2)]
    largest = max(float(torch.linalg.matrix_norm(j, 2)) for j in both)
    assert 0.98 * largest <= near.norm() <= largest * (1 + 1e-6)


def test_a_linear_operator_is_its_own_tangent_and_numpy_has_none() -> None:
    operator = blur()
    assert operator.linearise(torch.zeros(1, 1, SIDE, SIDE)) is operator

    class NotTorch(Operator):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.detach().numpy() ** 2)

    with pytest.raises(invsolve.UserError, match="not differentiable"):
        NotTorch().linearise(torch.ones(1, 1, 2, 2))


def test_chunks_tell_how_each_row_ended() -> None:
    operator = blur("zero").double()
    y = operator(torch.randn(5, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    y[3] = 0
    start = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends: list[Sequence[invsolve.Solution]] = []
    for one in (operator, in_chunks(operator, 2, CPU, CPU)):
        told: list[invsolve.Solution] = []
        assert isinstance(one, LinearOperator)
        one.prox(torch.zeros_like(y), y, 0.01, invsolve.CG(1e-6, 12, start, told.append))
        ends.append(told)
    (whole,), (parts,) = ends
    assert torch.equal(whole.converged, parts.converged)
    assert torch.equal(whole.iterations, parts.iterations)
    torch.testing.assert_close(whole.x, parts.x)
