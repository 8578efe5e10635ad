"""What operators ask of the arrays and sizes that they are given: masks of two values, kernels and sizes that make sense."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError

#: Ends of the names of files by which a parameter that is an array may be given; files from elsewhere may not name any.
ARRAY_FILES = (".npy", ".tif", ".tiff", ".png")
#: Pixels along an axis; what is more is a slip, and would fill the memory.
LARGEST_SIDE = 2**20


def as_mask(mask: Tensor, where: str) -> Tensor:
    """What is measured, boolean and shaped like the mask: True where it is not zero.

    Args:
        mask: zero where nothing is measured, one other value elsewhere, from 1 on (True, 1, 255).
        where: whose mask, for the message, such as "operator 'mri'".

    Raises:
        UserError: NaN, complex numbers, or more values than two: weights, of which no operator here knows anything.
    """
    if mask.is_complex():
        raise UserError(f"{where}: mask is complex; give what is measured, such as numpy.abs(mask) > 0")
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() and not bool(mask.isfinite().all()):
        count = int((~mask.isfinite()).sum())
        raise UserError(f"{where}: mask has {count} NaN or infinite entries; give 1 where measured and 0 elsewhere")
    measured = mask != 0
    values = mask[measured]
    # Pictures of masks have 255 for one.
    if len(values) and (float(values.min()) != float(values.max()) or float(values[0]) < 1):
        raise UserError(
            f"{where}: mask has values from {float(values.min()):g} to {float(values.max()):g} beside 0, but an entry is either "
            "measured or not; give mask > 0, or a threshold of your choice"
        )
    return measured


def from_array(array: np.ndarray, name: str) -> Tensor:
    """An array of numbers as a tensor: of any byte order, as wide as torch has it.

    Args:
        array: real, complex, whole numbers or booleans.
        name: of the array, for the message.

    Raises:
        UserError: values that are masked, or no numbers.
    """
    if isinstance(array, np.ma.MaskedArray):
        if count := int(np.ma.getmaskarray(array).sum()):
            raise UserError(
                f"{name} is a masked array with {count} masked values; fill them, {name}.filled(0), and say "
                "in the operator's mask that they are not measured"
            )
        array = array.data
    if array.dtype.kind not in "biufc":
        raise UserError(f"{name} holds {array.dtype}, expected numbers; make it an array of one shape, dtype float32")
    # Torch knows the machine's own byte order alone, no extended precision, and of unsigned numbers little more than the names.
    widest = {"f": np.float64, "c": np.complex128}.get(array.dtype.kind)
    plain = array.dtype.newbyteorder("=")
    if widest is not None and plain.itemsize > np.dtype(widest).itemsize:
        plain = np.dtype(widest)
    if array.dtype.kind == "u":
        plain = np.dtype({1: np.uint8, 2: np.int32, 4: np.int64}.get(plain.itemsize, np.float64))
    return torch.from_numpy(np.ascontiguousarray(array, plain))


def as_array(value: Tensor | np.ndarray | Sequence[object], name: str) -> Tensor:
    """A tensor, an array or a (nested) list of numbers, as a tensor.

    Raises:
        UserError: no numbers, or masked ones.
    """
    return value if isinstance(value, Tensor) else from_array(np.asanyarray(value), name)


def rows_and_columns(size: int | Sequence[int] | None, where: str, name: str = "image_size") -> tuple[int, int] | None:
    """An image size, N for N x N pixels or [rows, columns], as (rows, columns); None stays None.

    Raises:
        UserError: not one or two whole numbers above zero, or a number that no image has.
    """
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(int(n) for n in size)
    if len(pair) != 2 or min(pair) < 1:
        got = size if isinstance(size, int) else list(pair)
        raise UserError(f"{where}: {name} must be N or [rows, columns], above 0, got {got}")
    if max(pair) > LARGEST_SIDE:
        raise UserError(
            f"{where}: {name} is {max(pair):g} pixels, more than {LARGEST_SIDE}; it counts pixels, not lengths"
        )
    return pair[0], pair[1]


def is_image(x: Tensor, where: str) -> None:
    """Refuse what has not the axes of 2-D images, for operators that take any size.

    Raises:
        UserError: x is not (items, channels, rows, columns).
    """
    if x.ndim != 4 or 0 in x.shape[2:]:
        ways = {2: "one grey image is x[None, None]", 3: "grey images are x[:, None], one colour image x[None]"}
        raise UserError(
            f"{where} takes images (items, channels, rows, columns), got {tuple(x.shape)}; "
            f"{ways.get(x.ndim, 'give them these axes')}"
        )


def by_parts(apply: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """A real linear map of real or complex tensors, all of them the one or the other: complex ones part by part."""
    if not any(value.is_complex() for value in values):
        return apply(*values)
    return torch.complex(apply(*(v.real for v in values)), apply(*(v.imag for v in values)))


def matching(buffer: Tensor, x: Tensor) -> Tensor:
    """Return `buffer` in the precision of `x`: real stays real, complex stays complex."""
    real = x.dtype.to_real() if x.is_complex() else x.dtype
    return buffer.to(real.to_complex() if buffer.is_complex() else real)
