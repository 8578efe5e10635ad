"""Deliberately wrong operators, each found by the kit under the property that it breaks: in use, and of odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.numerics.autograd import linear_map
from invsolve.testing import Case, checks
from invsolve.testing.exact import SomePixels

#: What a stranger's operator is held to in use, beside its numbers.
IN_USE = (
    "keeps nothing of a call",
    "safe in threads",
    "follows replaced tensors",
    "never waits for the device",
    "long images",
    "volumes",
)
SIZE = (1, 4, 6)


def case(operator: Operator, name: str) -> Case:
    return next(one for one in checks(operator) if one.property == name)


def broken(operator: Operator) -> set[str]:
    return {one.property for one in checks(operator) if not one.finding().ok}


class Gain(LinearOperator):
    """A gain for each column; the base of operators that are wrong in one way."""

    image_shape = SIZE

    def __init__(self) -> None:
        self.gain = torch.linspace(1, 2, SIZE[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.gain.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain.to(y) * y


def test_the_right_one_holds_everything_and_each_property_is_a_case() -> None:
    assert not broken(Gain())
    assert set(IN_USE) <= {one.property for one in checks(Gain())}


class TakesANumber(Gain):
    """A number as Python's, taken from the device at every call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gain[0].item() * self.gain.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return float(self.gain[0]) * self.gain.to(y) * y


class Asks(Gain):
    """A condition on values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gain.to(x) * x if self.gain.min() > 0 else x


class Selects(Gain):
    """A boolean mask as an index: its result is as long as the device says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., self.gain > 1.5]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *SIZE)
        x[..., self.gain > 1.5] = y
        return super().adjoint(x)


class Finds(Gain):
    """Places of what is not zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., self.gain.nonzero().flatten()]


class InNumPy(Gain):
    """NumPy code, which computes on the host, and does not say so."""

    def _times(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.gain) * x.detach().numpy()).to(x)

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self._times, self._times)

    def adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y, self._times, self._times)


class Fetches(Gain):
    """Moves to the CPU by name, in the adjoint alone."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain.to(y) * y.to("cpu").to(y.device)


class WaitsBackwards(Gain):
    """Waits in the backward pass alone."""

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, super().forward, lambda y: self.gain[0].item() * self.gain.to(y) * y)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain[0] * self.gain.to(y) * y


class Remembers(Gain):
    """Takes a number at the first call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.remembered("peak", lambda: float(self.gain.max())) * super().forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.remembered("peak", lambda: float(self.gain.max())) * super().adjoint(y)


class Solves(Gain):
    """Solves equations, and is told whether that went well."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(torch.diag(1 / self.gain.to(x)), x.mT).mT


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (TakesANumber, "forward: a number or a condition"),
        (TakesANumber, "adjoint: a number or a condition"),
        (Asks, "forward: a number or a condition"),
        (Selects, "forward: indexing with a boolean mask"),
        (Selects, "adjoint: assignment to a boolean mask"),
        (Finds, "forward: torch's nonzero"),
        (Solves, "forward: a check of the equations"),
        (InNumPy, "forward: .numpy()"),
        (Fetches, 'adjoint: .to("cpu")'),
        (WaitsBackwards, "gradient: a number or a condition"),
    ],
)
def test_an_operator_that_waits_for_the_device_is_found(kind: type[Gain], says: str) -> None:
    finding = case(kind(), "never waits for the device").finding()
    assert not finding.ok
    assert says in finding.text


def test_waiting_is_all_that_is_wrong_with_it() -> None:
    for kind in (TakesANumber, Asks, Fetches):
        assert broken(kind()) == {"never waits for the device"}


def test_what_the_first_call_finds_out_and_keeps_is_no_waiting() -> None:
    assert not broken(Remembers())


def test_adapted_numpy_code_says_that_it_waits_also_in_combinations() -> None:
    adapted = invsolve.adapt(np.eye(24), image_shape=SIZE)
    assert isinstance(adapted, LinearOperator)
    for operator in (adapted, Gain() @ adapted, adapted + Gain(), 2.0 * adapted, invsolve.stack([Gain(), adapted])):
        finding = case(operator, "never waits for the device").finding()
        assert finding.skipped
        assert "NumPy code runs on the host" in finding.text


class Shifted(LinearOperator):
    """Two neighbours added, along an axis; its adjoint goes the other way, along an axis that may be another."""

    def __init__(self, axes: tuple[int, int]) -> None:
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, self.axes[0])

    def adjoint(self, y: Tensor) -> Tensor:
        return y + y.roll(-1, self.axes[1])


class Depth(Shifted):
    """The same, tried with volumes."""

    shapes_tried: ClassVar[tuple[tuple[int, ...], ...]] = ((1, 3, 5, 4),)


class Square(LinearOperator):
    """Rows and columns exchanged; what it multiplies by afterwards is as long as the rows were: right for squares alone."""

    shapes_tried: ClassVar[tuple[tuple[int, ...], ...]] = ((1, 5, 5),)

    def forward(self, x: Tensor) -> Tensor:
        return x.mT * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y * torch.arange(1, y.shape[-1] + 1, dtype=y.dtype)).mT


class Folded(LinearOperator):
    """Pixels in one line, moved on by as many as a row has; back, by as many as a column has."""

    shapes_tried: ClassVar[tuple[tuple[int, ...], ...]] = ((1, 5, 5),)

    def forward(self, x: Tensor) -> Tensor:
        return x + x.flatten(2).roll(x.shape[-1], -1).view(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return y + y.flatten(2).roll(-y.shape[-2], -1).view(y.shape)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Square, "long images"),
        (Folded, "long images"),
        # The second axis behind the channels is the rows' of an image and the slices' of a volume.
        (lambda: Shifted((2, -2)), "volumes"),
    ],
)
def test_an_operator_that_is_wrong_for_other_shapes_is_found(make: Callable[[], Operator], wrong: str) -> None:
    found = broken(make())
    assert wrong in found
    assert "adjoint" not in found


def test_right_axes_pass_and_refused_shapes_are_skipped_with_the_reason() -> None:
    assert not broken(Shifted((-2, -2)))
    blur = invsolve.operator("blur", sigma=0.8)
    assert case(blur, "long images").finding().ok
    refused = case(blur, "volumes").finding()
    assert refused.skipped
    assert "takes images (items, channels, rows, columns)" in refused.text
    assert "one size" in case(SomePixels(), "volumes").absent


def test_a_volume_operator_that_mixes_its_axes_is_found_by_its_adjoint() -> None:
    assert "adjoint" in broken(Depth((-3, -2)))
    assert not broken(Depth((-3, -3)))
