"""What combinations of operators share: what may be combined, under which name, for how many items; differences and quotients."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from invsolve.errors import UserError

#: Combinations that may stand one inside the other. Each is five calls deep, of which Python allows a thousand in all.
DEEPEST = 64


class Arithmetic:
    """What follows from A + B and s * A."""

    def __sub__(self, other: Any) -> Any:
        # Asked first: what has no product with a number is no operator.
        is_operator(other, Arithmetic, "A - B")
        return self + -1.0 * other

    def __neg__(self) -> Any:
        return -1.0 * self  # type: ignore[operator]

    def __mul__(self, factor: float) -> Any:
        # Asked first: what leaves the product to us in turn would go round for ever.
        return real_factor(factor) * self  # type: ignore[operator]

    def __truediv__(self, factor: float) -> Any:
        return (1 / real_factor(factor)) * self  # type: ignore[operator]


class NoArithmetic:
    """Sums and products of operators that are not linear: refused in a line.

    Attributes:
        nested: how many combinations stand one inside the other in an operator; 0 for what is none.
    """

    nested: int = 0

    def __add__(self, other: Any) -> Any:
        raise UserError(
            f"sums and products are of linear operators; {called(self)!r} is not: A @ B composes it, and invsolve.stack stacks it"
        )

    def __sub__(self, other: Any) -> Any:
        return NoArithmetic.__add__(self, other)

    def __mul__(self, factor: Any) -> Any:
        return NoArithmetic.__add__(self, factor)

    def __rmul__(self, factor: Any) -> Any:
        return NoArithmetic.__add__(self, factor)

    def __truediv__(self, factor: Any) -> Any:
        return NoArithmetic.__add__(self, factor)

    def __neg__(self) -> Any:
        return NoArithmetic.__add__(self, None)


def called(operator: Any) -> str:
    """Its name, in messages and in the names of combinations."""
    return operator.name or type(operator).__name__


def is_operator(other: Any, wanted: type, where: str) -> None:
    """Refuse what an operator cannot be combined with.

    Args:
        other: what it is.
        wanted: the class that it must be of.
        where: the expression, for the message.

    Raises:
        UserError: no operator, or one that is not linear where both must be.
    """
    if isinstance(other, wanted):
        return
    if hasattr(other, "measurement_shape"):
        raise UserError(f"{where} takes linear operators; {called(other)!r} is not")
    raise UserError(f"{where} takes operators, got {type(other).__name__}; the measurement of an image is A(x)")


def added(left: Any, right: Any, one: Tensor, other: Tensor) -> Tensor:
    """The sum of what two operators measured of the same images.

    Raises:
        UserError: their shapes differ.
    """
    if one.shape != other.shape:
        raise UserError(
            f"operators {called(left)!r} and {called(right)!r} cannot be added: they measure {tuple(one.shape[1:])} and "
            f"{tuple(other.shape[1:])}; invsolve.stack takes both"
        )
    return one + other


def real_factor(factor: Any) -> float:
    """The number that an operator is multiplied by.

    Raises:
        UserError: no real number, zero, or not finite.
    """
    number = isinstance(factor, int | float) or (isinstance(factor, Tensor) and factor.numel() == 1)
    if not number or (isinstance(factor, Tensor) and factor.is_complex()):
        raise UserError(
            f"an operator can be multiplied by a real number, got {type(factor).__name__}; weights of the measurement are an "
            "operator of their own: weights @ A"
        )
    if not 0 < abs(float(factor)) < math.inf:
        raise UserError(f"an operator can be multiplied by a finite number other than 0, got {factor}")
    return float(factor)


def of_one_image(*operators: Any) -> None:
    """Refuse operators that do not take the same images.

    Raises:
        UserError: the image shapes that they fix differ.
    """
    fixed = {called(a): tuple(a.image_shape) for a in operators if a.image_shape is not None}
    shapes = [tuple(a.image_shape) for a in operators if a.image_shape is not None]
    if len(set(shapes)) > 1:
        told = ", ".join(f"{name} {shape}" for name, shape in fixed.items()) if len(fixed) > 1 else str(shapes)[1:-1]
        raise UserError(f"operators of one image must take images of one size (channels, *size), got {told}")


def items_of(*operators: Any) -> int | None:
    """How many items a combination of operators has; None where none of them has items.

    Raises:
        UserError: their numbers differ.
    """
    counts = {operator.items for operator in operators} - {None}
    if len(counts) > 1:
        names = ", ".join(f"{called(a)} {a.items}" for a in operators if a.items is not None)
        raise UserError(f"operators with parameters for each item have different numbers of items ({names})")
    return counts.pop() if counts else None


def depth(*operators: Any) -> int:
    """How many combinations stand one inside the other in a combination of these operators.

    Raises:
        UserError: more than `DEEPEST`.
    """
    count = 1 + max(operator.nested for operator in operators)
    if count > DEEPEST:
        raise UserError(
            f"operators are combined {count} deep, at most {DEEPEST}: combine them in pairs, as (A @ B) @ (C @ D), or write one "
            "operator whose forward goes through them in a loop"
        )
    return count
