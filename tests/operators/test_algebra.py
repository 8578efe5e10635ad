"""Random expressions of registered operators, nested, against the same expressions of their dense matrices."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import invsolve
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import size_of
from invsolve.testing.operators import dense

SIDE = 6
SHAPE = (1, SIDE, SIDE)
NO_OPERATOR: Any = object()

#: Operators that give an image of the size they take.
SAME: dict[str, dict[str, Any]] = {
    "half the pixels": {"name": "inpainting", "fraction": 0.5, "image_size": SIDE},
    "other pixels": {"name": "inpainting", "fraction": 0.7, "image_size": SIDE, "seed": 3},
    "blur": {"name": "blur", "kernel": [[0.1, 0.3], [0.2, 0.4]]},
    "padded blur": {"name": "blur", "kernel": [[0.5, -0.2, 0.1]], "boundary": "zero"},
}
#: Any measurement.
ANY: dict[str, dict[str, Any]] = {
    **SAME,
    "tomography": {"name": "ct", "image_size": SIDE, "angles": 4},
    "fewer pixels": {"name": "downsample", "factor": 2},
    "random numbers": {"name": "compressive", "fraction": 0.4, "transform": "dct", "image_size": SIDE},
    "one coil": {"name": "mri", "mask": [1, 0, 1, 1, 0, 1], "image_size": SIDE},
}


@dataclass
class Expression:
    """An operator, and the matrix that it must have."""

    text: str
    operator: LinearOperator
    matrix: Tensor


def leaf(name: str) -> Expression:
    parameters = dict(ANY[name])
    operator: Any = invsolve.operator(parameters.pop("name"), **parameters)
    operator = operator.double()
    if operator.image_shape is None:
        operator.image_shape = SHAPE
    # Of the operator as it is; of what is made of it below, the algebra of matrices tells.
    return Expression(name, operator, dense(operator, SHAPE)[0])


def together(*parts: Expression) -> list[Tensor]:
    kinds = [part.matrix.dtype for part in parts]
    wide = torch.complex128 if torch.complex128 in kinds else torch.float64
    return [part.matrix.to(wide) for part in parts]


def product(outer: Expression, first: Expression) -> Expression:
    a, b = together(outer, first)
    return Expression(f"({outer.text} @ {first.text})", outer.operator @ first.operator, a @ b)


def total(one: Expression, other: Expression) -> Expression:
    a, b = together(one, other)
    return Expression(f"({one.text} + {other.text})", one.operator + other.operator, a + b)


def difference(one: Expression, other: Expression) -> Expression:
    a, b = together(one, other)
    return Expression(f"({one.text} - {other.text})", one.operator - other.operator, a - b)


def scaled(factor: float, one: Expression) -> Expression:
    return Expression(f"{factor} {one.text}", factor * one.operator, factor * one.matrix)


def side_by_side(parts: list[Expression]) -> Expression:
    text = f"[{', '.join(part.text for part in parts)}]"
    return Expression(text, invsolve.stack([part.operator for part in parts]), torch.cat(together(*parts)))


FACTORS = st.sampled_from([-1.5, 0.25, 1.0, 3.0])
IMAGES = st.recursive(
    st.sampled_from(sorted(SAME)).map(leaf),
    lambda inner: st.one_of(
        st.builds(product, inner, inner),
        st.builds(total, inner, inner),
        st.builds(difference, inner, inner),
        st.builds(scaled, FACTORS, inner),
    ),
    max_leaves=4,
)
LEAVES = st.sampled_from(sorted(ANY)).map(leaf)
MEASURING = st.one_of(
    LEAVES,
    IMAGES,
    st.builds(product, LEAVES, IMAGES),
    st.sampled_from(sorted(ANY)).flatmap(
        lambda name: st.builds(lambda a, b: total(product(leaf(name), a), product(leaf(name), b)), IMAGES, IMAGES)
    ),
    st.builds(lambda f, a, b: scaled(f, product(a, b)), FACTORS, LEAVES, IMAGES),
)
EXPRESSIONS = st.recursive(
    MEASURING,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(side_by_side), st.builds(scaled, FACTORS, inner)
    ),
    max_leaves=3,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_an_expression_is_that_of_its_matrices(made: Expression) -> None:
    operator, matrix = made.operator, made.matrix
    wide = torch.complex128 if operator.complex_image else torch.float64
    matrix = matrix.to(wide)
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3, *SHAPE, dtype=wide, generator=generator)
    y = operator(x)
    close: Any = {"rtol": 0, "atol": 1e-9 * max(float(matrix.abs().sum()), 1)}
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ matrix.T, **close)
    v = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    torch.testing.assert_close(operator.adjoint(v).flatten(1), v.flatten(1) @ matrix.conj(), **close)
    gram = matrix.mH @ matrix
    torch.testing.assert_close(operator.normal(z).flatten(1), z.flatten(1) @ gram.T, **close)
    # The data step.
    size = float(torch.linalg.matrix_norm(matrix, 2))
    rho = 0.05 * size**2 + 1e-3
    wanted = torch.linalg.solve(
        gram + rho * torch.eye(len(gram), dtype=wide), (v.flatten(1) @ matrix.conj() + rho * z.flatten(1)).T
    ).T
    got = operator.prox(z, v, rho, invsolve.CG(1e-10, 500)).flatten(1)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6
    # By power iteration, from below; nothing where the parts cancel.
    norm = operator.norm(y)
    assert 0.97 * size - 1e-9 <= norm <= size * (1 + 1e-6) + 1e-9
    # What is said not to be measured is zero for every image.
    mask = operator.measured()
    if mask is not None:
        dark = ~mask.expand(y.shape[1:]).flatten()
        assert not bool(matrix[dark].any())
        assert not bool(y.flatten(1)[:, dark].any())
    if isinstance(operator, MaskableOperator):
        groups = operator.groups
        every = operator.group_mask(torch.ones(1, groups, dtype=torch.bool)).expand(y.shape)
        assert torch.equal(torch.where(every, y, 0), y)
        energy = y.abs().square()
        each = torch.stack(
            [
                (operator.group_mask(torch.eye(groups, dtype=torch.bool)[k : k + 1]) * energy).flatten(1).sum(1)
                for k in range(groups)
            ],
            1,
        )
        torch.testing.assert_close(operator.group_sum(energy), each)


@pytest.mark.parametrize("kind", ["blurs", "masks", "k-space"])
def test_a_stack_of_what_one_basis_makes_diagonal_is_solved_at_once(kind: str) -> None:
    """Two exposures of one scene through two lenses, two masks, two scans of one coil: against the dense normal equations."""
    draw = torch.Generator().manual_seed(3)
    blur = invsolve.operator("blur", kernel=torch.rand(3, 4, generator=draw))
    masks = [invsolve.operator("inpainting", fraction=0.4, image_size=[8, 9], seed=s) for s in range(2)]
    scans = [invsolve.operator("mri", image_size=[8, 9], acceleration=2, seed=s) for s in range(2)]
    parts: dict[str, list[Any]] = {
        "blurs": [blur, 0.5 * invsolve.operator("blur", sigma=0.9)],
        "masks": [masks[0], -2.0 * masks[1]],
        "k-space": [scans[0], 0.7 * scans[1]],
    }
    both = invsolve.stack(parts[kind])
    both.image_shape = (1, 8, 9)
    wide = torch.complex128 if kind == "k-space" else torch.float64
    matrix = torch.stack([both(e.view(1, 1, 8, 9))[0] for e in torch.eye(72, dtype=wide)], 1)
    z, y = torch.randn(2, 1, 8, 9, dtype=wide, generator=draw), torch.randn(2, len(matrix), dtype=wide, generator=draw)
    # One iteration is far from enough: nothing is iterated.
    step = both.prox(z, y, torch.tensor([0.1, 2.0]).view(2, 1, 1, 1), CG(0.5, 1)).flatten(1)
    for row, rho in enumerate((0.1, 2.0)):
        normal = matrix.mH @ matrix + rho * torch.eye(72)
        wanted = torch.linalg.solve(normal, matrix.mH @ y[row] + rho * z[row].flatten())
        torch.testing.assert_close(step[row], wanted, rtol=0, atol=1e-7)
    pinv = torch.linalg.pinv(matrix, rtol=1e-5)
    torch.testing.assert_close(both.pinv(y).flatten(1), y @ pinv.T, rtol=0, atol=1e-7)
    assert invsolve.stack([blur, masks[0]]).svd((1, 8, 9), torch.zeros(1, 144)) is None


def test_what_is_maskable_stays_so() -> None:
    half, other, blur = (leaf(name).operator for name in ("half the pixels", "other pixels", "blur"))
    ct = leaf("tomography").operator
    for expression in (
        half @ blur,
        2.0 * half,
        -half,
        half / 3,
        ct @ blur,
        ct + ct @ blur,
        ct - ct,
        invsolve.stack([half, ct]),
    ):
        assert isinstance(expression, MaskableOperator)
    # Of different pixels a group of the sum would be two.
    assert not isinstance(half + other, MaskableOperator)
    assert not isinstance(invsolve.stack([half, blur]), MaskableOperator)
    both: Any = invsolve.stack([half, ct])
    assert both.groups == half.groups + 4
    # The fourth angle, and nothing else.
    last = both.group_mask(torch.eye(both.groups, dtype=torch.bool)[-1:])
    assert int(last.sum()) == size_of(ct.measurement_shape(SHAPE)[1:])


def test_what_is_not_linear_composes_too() -> None:
    blur = leaf("blur").operator.float()
    clip: Any = invsolve.operator("clip", low=0.0, high=0.6)
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    camera = clip @ blur
    assert not isinstance(camera, LinearOperator)
    assert torch.equal(camera(x), clip(blur(x)))
    assert camera.image_shape == SHAPE
    both = invsolve.stack([camera, blur])
    assert not isinstance(both, LinearOperator)
    assert torch.equal(both(x), torch.cat([camera(x).flatten(1), blur(x).flatten(1)], 1))
    tangent = camera.linearise(x)
    assert torch.allclose(tangent(torch.ones_like(x)), clip.linearise(blur(x))(blur(torch.ones_like(x))))
    assert invsolve.testing.check_operator(camera, SHAPE)


@pytest.mark.parametrize(
    ("combine", "says"),
    [
        (
            lambda a, b: a @ torch.zeros(1, 1, 6, 6),
            "A @ B takes operators, got Tensor; the measurement of an image is A(x)",
        ),
        (lambda a, b: a + 1, "A + B takes operators, got int; the measurement"),
        (lambda a, b: a + invsolve.operator("clip", low=0.0, high=1.0), "A + B takes linear operators; 'clip' is not"),
        (lambda a, b: torch.zeros(3).tolist() * a, "an operator can be multiplied by a real number, got list"),
        (lambda a, b: a * b, "an operator can be multiplied by a real number, got CT"),
        (
            lambda a, b: invsolve.operator("clip", low=0.0, high=1.0) + a,
            "sums and products are of linear operators; 'clip'",
        ),
        (
            lambda a, b: 2 * invsolve.operator("clip", low=0.0, high=1.0),
            "sums and products are of linear operators; 'clip'",
        ),
        (
            lambda a, b: -invsolve.operator("clip", low=0.0, high=1.0),
            "sums and products are of linear operators; 'clip'",
        ),
        (lambda a, b: a / 0, "an operator can be multiplied by a finite number other than 0, got 0"),
        (
            lambda a, b: (a + b)(torch.zeros(1, 1, 6, 6)),
            "operators 'inpainting' and 'ct' cannot be added: they measure (1, 6, 6)",
        ),
        (lambda a, b: invsolve.stack([]), "stack takes one operator or more, got none"),
        (lambda a, b: invsolve.stack([a, NO_OPERATOR]), "stack takes operators, got object"),
        (
            lambda a, b: invsolve.stack([a, invsolve.operator("ct", image_size=8, angles=3)]),
            "operators of one image must take images of one size (channels, *size), got inpainting (1, 6, 6), ct (1, 8, 8)",
        ),
        (lambda a, b: b @ invsolve.operator("ct", image_size=8, angles=3), None),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(combine: Any, says: str | None) -> None:
    a, b = (leaf(name).operator.float() for name in ("half the pixels", "tomography"))

    def use() -> None:
        made = combine(a, b)
        if isinstance(made, Operator):
            made(torch.zeros(1, *(made.image_shape or SHAPE)))

    with pytest.raises(invsolve.UserError) as caught:
        use()
    assert "\n" not in str(caught.value)
    assert says is None or str(caught.value).startswith(says)


@pytest.mark.parametrize("combined", ["product", "not linear", "sum", "multiple", "stack"])
def test_combinations_are_as_deep_as_python_goes_and_no_deeper(combined: str) -> None:
    """Combinations of the identity, 64 one inside the other; the next one is refused in a line."""

    class Identity(LinearOperator):
        image_shape = SHAPE

        def forward(self, x: Tensor) -> Tensor:
            return x

        def adjoint(self, y: Tensor) -> Tensor:
            return y.view(-1, *SHAPE)

    class Same(Operator):
        image_shape = SHAPE

        def forward(self, x: Tensor) -> Tensor:
            return x

    def more(inner: Any) -> Any:
        return {
            "product": lambda: Identity() @ inner,
            "not linear": lambda: Same() @ inner,
            "sum": lambda: inner + Identity(),
            "multiple": lambda: -1 * inner,
            "stack": lambda: invsolve.stack([inner]),
        }[combined]()

    operator: Any = Same() if combined == "not linear" else Identity()
    for _ in range(64):
        operator = more(operator)
    x = torch.rand(1, *SHAPE)
    factor = 65.0 if combined == "sum" else 1.0
    copied = copy.deepcopy(operator)
    assert torch.allclose(copied(x).view_as(x), factor * x)
    if combined != "not linear":
        assert torch.allclose(copied.normal(x), factor**2 * x)
        assert torch.allclose(copied.adjoint(copied(x)), factor**2 * x)
    with pytest.raises(invsolve.UserError, match="operators are combined 65 deep, at most 64: combine them in pairs"):
        more(operator)
    # A tree of as many is not deep.
    pair: Any = Identity()
    for _ in range(8):
        pair = pair @ pair
    assert torch.equal(pair(x), x)
