"""Several operators on one image, their measurements side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invsolve.contracts.combining import called, depth, is_operator, items_of, of_one_image
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import size_of
from invsolve.numerics.spectrum import SingularSystem, safe_reciprocal, side_by_side


class Stacked(Operator):
    """Several operators on one image, measurements flattened side by side: y (B, m1 + m2 + ...). Not linear; `Stack` is.

    Args:
        operators: of one image size; where none fixes it, assign `image_shape`.

    Raises:
        UserError: none, something that is no operator, or different image sizes.
    """

    parts: nn.ModuleList

    def __init__(self, operators: Sequence[Operator]) -> None:
        super().__init__()
        if not operators:
            raise UserError("stack takes one operator or more, got none")
        for operator in operators:
            is_operator(operator, Operator, "stack")
        of_one_image(*operators)
        self.nested = depth(*operators)
        self.parts = nn.ModuleList(operators)
        self.image_shape = next((a.image_shape for a in operators if a.image_shape is not None), None)
        self.complex_image = any(a.complex_image for a in operators)
        self.image_unit = next((a.image_unit for a in operators if a.image_unit), "")
        self.name, self.items = f"stack of {', '.join(called(a) for a in operators)}", items_of(*operators)
        self.waits = next((a.waits for a in operators if a.waits), "")

    def of_item(self, item: int) -> Any:
        one = stack([part.for_item(item) for part in self.parts])  # type: ignore[operator]
        one.image_shape = self.image_shape
        return one

    @property
    def surrogate(self) -> str:  # type: ignore[override]
        return next((str(part.surrogate) for part in self.parts if part.surrogate), "")

    @property
    def flat(self) -> str:  # type: ignore[override]
        return next((str(part.flat) for part in self.parts if part.flat), "")

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each part's measurement.

        Raises:
            UserError: no part knows its image's shape, and none was assigned to `image_shape`.
        """
        shape = tuple(self.blank().shape[1:])
        return self.remembered(shape, lambda: [part.measurement_shape(shape) for part in self.parts])  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def measured(self) -> Tensor | None:
        masks = [part.measured() for part in self.parts]  # type: ignore[operator]
        if all(mask is None for mask in masks):
            return None
        place = next(mask.device for mask in masks if mask is not None)
        whole = torch.ones((), dtype=torch.bool, device=place)
        pairs = zip(masks, self.shapes(), strict=True)
        return torch.cat([(whole if m is None else m.bool()).expand(s).flatten() for m, s in pairs])

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return self.image_shape


class Stack(Stacked, LinearOperator):
    """`Stacked` of linear operators."""

    def adjoint(self, y: Tensor) -> Tensor:
        shapes = self.shapes()
        parts = zip(self.parts, y.split([size_of(s) for s in shapes], 1), shapes, strict=True)
        return torch.stack([part.adjoint(piece.reshape(-1, *s)) for part, piece, s in parts]).sum(0)  # type: ignore[operator]

    def normal(self, x: Tensor) -> Tensor:
        # Each part's own, which may be shorter than its forward and adjoint.
        return torch.stack([part.normal(x) for part in self.parts]).sum(0)  # type: ignore[operator]

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """That of the parts, where all have one basis: pixels, or the Fourier basis of circular filters."""
        return self._joined("svd", tuple(image_shape), like)

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        return self._joined("svd_on_real_images", self.image_shape, like)

    def _joined(self, kind: str, image_shape: tuple[int, ...] | None, like: Tensor) -> SingularSystem | None:
        # Real images of which some measurements are complex, or some parts take complex ones, have bases of their own.
        if image_shape is None or len({(part.complex_image, like.is_complex()) for part in self.parts}) > 1:
            return None
        if like.is_complex() != self.complex_image:
            return None
        shapes = self.remembered(
            ("shapes", image_shape),
            lambda: [part.measurement_shape(image_shape) for part in self.parts],  # type: ignore[operator]
        )

        def split(y: Tensor) -> list[Tensor]:
            pieces = y.split([size_of(shape) for shape in shapes], 1)
            return [piece.reshape(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]

        def joint() -> SingularSystem | None:
            given = [(image_shape, piece) if kind == "svd" else (piece,) for piece in split(like)]
            return side_by_side([getattr(p, kind)(*a) for p, a in zip(self.parts, given, strict=True)], split)

        # Asked for at each data step: where there is none, that is remembered.
        key = ("one basis", kind, image_shape, like.dtype, like.device)
        return joint() if self.remembered(key, lambda: joint() is not None) else None

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        system = self.svd(tuple(z.shape[1:]), y)
        if system is None:
            return super().prox(z, y, rho, solver)
        # Bases that have a name are those of all images. Where singular values are cut, A'y is as it was.
        seen = system.to_basis(self.adjoint(y) + rho * z)
        weight = rho.view(-1, *[1] * (seen.ndim - 1)) if isinstance(rho, Tensor) and rho.ndim else rho
        return system.from_basis(seen / (system.values**2 + weight))

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        system = None if self.image_shape is None else self.svd(self.image_shape, y)
        if system is None:
            return super().pinv(y, solver)
        return system.from_basis(safe_reciprocal(system.values) * system.measurement_to_basis(y))


class MaskableStack(Stack, MaskableOperator):
    """`Stack` of maskable operators: the groups of the first, then those of the second, and so on."""

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        return self.remembered("group_index", self._number)

    def group_coordinates(self) -> dict[str, Tensor]:
        """Those of the parts, NaN where a part has none of the name, and the number of the "part"."""
        counts: list[int] = [part.groups for part in self.parts]  # type: ignore[misc]
        known: list[dict[str, Tensor]] = [part.group_coordinates() for part in self.parts]  # type: ignore[operator]
        nowhere = [torch.full((count,), torch.nan, dtype=torch.float64) for count in counts]
        number = torch.cat([torch.full_like(rest, place) for place, rest in enumerate(nowhere)])
        names = dict.fromkeys(name for part in known for name in part)
        pairs = list(zip(known, nowhere, strict=True))
        return {"part": number} | {n: torch.cat([part.get(n, rest) for part, rest in pairs]) for n in names}

    def _number(self) -> Tensor:
        indices, before = [], 0
        for part, shape in zip(self.parts, self.shapes(), strict=True):
            assert isinstance(part, MaskableOperator)
            index = part.group_index.expand(shape).flatten()
            indices.append(torch.where(index >= 0, index + before, -1))
            before += part.groups
        return torch.cat(indices)


def stack(operators: Sequence[Operator]) -> Any:
    """Measure one image with several operators at once; y is their flattened measurements side by side, (B, m1 + m2 + ...).

    Linear where all of them are, and maskable where all of them are.

    Raises:
        UserError: none, something that is no operator, or different image sizes.
    """
    given = list(operators)
    if all(isinstance(a, MaskableOperator) for a in given) and given:
        return MaskableStack(given)
    return Stack(given) if all(isinstance(a, LinearOperator) for a in given) else Stacked(given)
