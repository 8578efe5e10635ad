"""Operators around other people's code: a pair of functions on arrays or tensors, with autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.errors import UserError
from invsolve.numerics.autograd import linear_map

Map = Callable[[Tensor], Tensor]


class ArrayPair(Protocol):
    """A linear map in NumPy: rows (B, *image) to rows (B, *measurement), and its transpose."""

    def forward(self, x: Any) -> Any: ...

    def adjoint(self, y: Any) -> Any: ...


class Held:
    """Holds a foreign object, which copies of an operator share: compiled plans and handles cannot be copied."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self


class Arrays(LinearOperator):
    """A linear operator whose two directions are NumPy code; differentiable by their being each other's transpose.

    Computes on the CPU in the precision of `precision`, and gives the precision and the device of what it is given.

    Args:
        pair: the two directions.
        image_shape: (C, *spatial).
        measurement_shape: without the batch axis; where absent, that of what `pair` gives for zeros.
        complex_image: whether x is complex; then the adjoint is the conjugate transpose, else the real part of it.
        precision: dtype that the code wants, such as numpy.float32; None takes any.

    Raises:
        UserError: (when applied) the code gives another number of values than its measurement has.
    """

    waits = "NumPy code runs on the host"

    def __init__(
        self,
        pair: ArrayPair,
        image_shape: Sequence[int],
        measurement_shape: Sequence[int] | None = None,
        complex_image: bool = False,
        precision: Any = None,
    ) -> None:
        super().__init__()
        self.image_shape, self.complex_image = tuple(image_shape), complex_image
        self.held, self.precision = Held(pair), None if precision is None else np.dtype(precision)
        ones = torch.ones(1, *image_shape, dtype=torch.complex64 if complex_image else torch.float32)
        given = np.asarray(pair.forward(self._array(ones)))
        shape = given.shape[1:] if measurement_shape is None else measurement_shape
        self.shape, self.complex_data = tuple(int(n) for n in shape), np.iscomplexobj(given)

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y, self._adjoint, self._forward)

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return self.shape

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return self.image_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self._tensor(self.held.value.forward(self._array(x)), x, self.shape, self.complex_data)

    def _adjoint(self, y: Tensor) -> Tensor:
        assert self.image_shape is not None
        back = np.asarray(self.held.value.adjoint(self._array(y)))
        return self._tensor(back if self.complex_image else back.real, y, self.image_shape, self.complex_image)

    def _array(self, tensor: Tensor) -> Any:
        array = tensor.detach().cpu().resolve_conj().numpy()
        wanted = array.dtype
        if self.precision is not None:
            wanted = np.result_type(self.precision, np.complex64) if tensor.is_complex() else self.precision
        # Always a copy: foreign code may write to what it is given, or give it back.
        return np.array(array, wanted, order="C")

    def _tensor(self, array: Any, like: Tensor, shape: tuple[int, ...], is_complex: bool) -> Tensor:
        array = np.asarray(array)
        if array.size != len(like) * int(np.prod(shape)) or (np.iscomplexobj(array) and not is_complex):
            raise UserError(
                f"operator {self.name!r}: the adapted code gave {array.dtype} {array.shape[1:]} where "
                f"{'complex' if is_complex else 'real'} {shape} was expected"
            )
        real = like.dtype.to_real() if like.is_complex() else like.dtype
        # Torch wants the machine's own byte order, and memory that it may write to.
        plain = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        tensor = torch.from_numpy(plain).reshape(len(like), *shape)
        return tensor.to(like.device, real.to_complex() if is_complex else real)


class Tensors(LinearOperator):
    """A linear operator whose directions are torch code on batches.

    Args:
        forward: (B, *image) -> (B, *measurement).
        adjoint: its transpose; where absent it is derived by autograd.
        image_shape: (C, *spatial).
        complex_image: whether x is complex.
        module: what the code belongs to, so that its tensors move with the operator.
    """

    def __init__(
        self,
        forward: Map | str,
        adjoint: Map | str | None,
        image_shape: Sequence[int],
        complex_image: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.image_shape, self.complex_image = tuple(image_shape), complex_image
        self.module, self.ways = module, (forward, adjoint)

    def forward(self, x: Tensor) -> Tensor:
        forward, adjoint = self._both()
        return forward(x) if adjoint is None else linear_map(x, forward, adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        forward, adjoint = self._both()
        return super().adjoint(y) if adjoint is None else linear_map(y, adjoint, forward)

    def _both(self) -> tuple[Map, Map | None]:
        forward, adjoint = self.ways
        return _method(self.module, forward), None if adjoint is None else _method(self.module, adjoint)


class Nonlinear(Operator):
    """A nonlinear operator whose forward is torch code on batches, which autograd follows.

    Args:
        forward: (B, *image) -> (B, *measurement).
        image_shape: (C, *spatial), None where it takes any.
        complex_image: whether x is complex.
        module: what the code belongs to, so that its tensors move with the operator.
    """

    def __init__(
        self,
        forward: Map | str,
        image_shape: Sequence[int] | None = None,
        complex_image: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.complex_image, self.module, self.way = complex_image, module, forward

    def forward(self, x: Tensor) -> Tensor:
        return _method(self.module, self.way)(x)


def _method(module: nn.Module | None, way: Map | str) -> Map:
    """A function, or the method of this name: looked up when called, so that a copy of the operator uses its own module."""
    return getattr(module, way) if isinstance(way, str) else way
