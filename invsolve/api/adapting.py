"""`adapt`: anything that maps images to measurements as an operator with autograd, checked before it is handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from invsolve.api.libraries import Functions, MriNufft, Pair, recognised
from invsolve.contracts.foreign import Arrays, Nonlinear, Tensors
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError
from invsolve.testing import Case, checks

#: What is looked at before an operator is handed over, in single precision: a wrong one would give wrong images without a word.
_LOOKED_AT = ("precision kept", "batch axis kept", "linear", "adjoint's shape", "adjoint", "adjoint of its own data")


def adapt(
    obj: Any,
    adjoint: Callable[[Any], Any] | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    complex_image: bool | None = None,
    image_unit: str = "",
    name: str = "",
    arrays: Literal["torch", "numpy"] = "torch",
    linear: bool = True,
    check: bool = True,
) -> Operator:
    """Make an operator of what another library, or a function, computes; every strategy then works with it.

    Taken as they are, without an import of their library: a SciPy `LinearOperator`, a matrix (dense or sparse), a PyLops
    operator, ASTRA's `OpTomo`, a sigpy `Linop`, an ODL operator (its weights are taken out), an mri-nufft operator, a
    DeepInverse `Physics` (its noise is left out). Or two functions:

        adapt(forward, adjoint, image_shape=(1, 64, 64))                    # torch: batches (B, C, *spatial) -> (B, ...)
        adapt(forward, image_shape=(1, 64, 64))                             # torch: the adjoint is derived by autograd
        adapt(forward, adjoint, image_shape=(1, 64, 64), arrays="numpy")    # NumPy: one image (C, *spatial) at a time

    It is a linear operator where the object is linear, with autograd through its adjoint. Foreign NumPy code runs on the CPU,
    image by image where the library has no batches.

    Args:
        obj: the operator, or the forward function.
        adjoint: the transpose of a forward function (the conjugate transpose for complex images).
        image_shape: (C, *spatial) of x. By default that of the library, with one channel in front; needed for vectors and
            functions. It may be any shape with as many values as the library's.
        complex_image: whether x is complex; by default what the library says. With False, an operator on complex vectors
            takes real images.
        image_unit: the physical unit of x.
        name: what to call it in messages; by default the object's class.
        arrays: what functions take and give.
        linear: whether a torch function is linear; one that is not needs no adjoint, as autograd gives its tangent.
        check: look first whether it is linear and its adjoint exact, in single precision, by some ten calls of each. Without,
            an adjoint that is wrong makes the images wrong.

    Returns:
        Operator: of class `LinearOperator` if it is linear.

    Raises:
        UserError: no operator is recognised, its shape is not known, or the check fails.
    """
    if isinstance(obj, Operator):
        return obj
    called = name or getattr(obj, "__name__", "") or type(obj).__name__
    made = _made(obj, adjoint, called, image_shape, complex_image, arrays, linear)
    made.name, made.image_unit = called, image_unit
    if check and made.image_shape is not None:
        _look(made, getattr(recognised(obj), "hint", ""))
    return made


def _made(
    obj: Any,
    adjoint: Callable[[Any], Any] | None,
    called: str,
    image_shape: Sequence[int] | None,
    complex_image: bool | None,
    arrays: str,
    linear: bool,
) -> Operator:
    if isinstance(obj, nn.Module) and callable(getattr(obj, "A", None)):
        shape = image_shape or getattr(obj, "img_size", None)
        if shape is None:
            raise UserError(f"adapt: {called} does not say which images it takes; give image_shape=(channels, *size)")
        if callable(getattr(obj, "A_adjoint", None)):
            return Tensors("A", "A_adjoint", shape, bool(complex_image), obj)
        return Nonlinear("A", shape, bool(complex_image), obj)
    if getattr(obj, "is_linear", True) is False:
        raise UserError(f"adapt: {called} is not linear; write its forward in torch and adapt that with linear=False")
    pair = recognised(obj)
    if pair is not None:
        shape = _image_shape(pair, called, image_shape)
        complex_image = pair.complex_image if complex_image is None else complex_image
        return Arrays(pair, shape, pair.measurement, bool(complex_image), pair.precision)
    if not callable(obj):
        raise UserError(
            f"adapt: {called} is no operator that is known here: neither a SciPy LinearOperator, a matrix, nor one of PyLops, "
            "ASTRA (OpTomo), sigpy, ODL, mri-nufft or DeepInverse, nor a function"
        )
    if image_shape is None:
        raise UserError(f"adapt: {called} is a function; say which images it takes by image_shape=(channels, *size)")
    module = obj if isinstance(obj, nn.Module) else None
    if arrays == "torch":
        forward = "forward" if module is not None else obj
        if not linear:
            return Nonlinear(forward, image_shape, bool(complex_image), module)
        return Tensors(forward, adjoint, image_shape, bool(complex_image), module)
    if adjoint is None or not linear:
        raise UserError(
            f"adapt: {called} is NumPy code, which has no derivative: give its adjoint, of a linear function"
        )
    functions = Functions(obj, adjoint, tuple(image_shape), bool(complex_image))
    return Arrays(functions, image_shape, functions.measurement, functions.complex_image)


def _image_shape(pair: Pair, called: str, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The shape that was asked for, or the library's with one channel in front.

    Raises:
        UserError: the library knows vectors alone, or has another number of values.
    """
    if wanted is None:
        if pair.image is None:
            raise UserError(
                f"adapt: {called} takes vectors of {pair.pixels} numbers; say which images they are by "
                "image_shape=(channels, rows, columns)"
            )
        return pair.image if isinstance(pair, MriNufft) else (1, *pair.image)
    if int(np.prod(wanted)) != pair.pixels or len(wanted) < 2:
        raise UserError(
            f"adapt: {called} takes {pair.pixels} numbers{f', {pair.image}' if pair.image else ''}, which images of "
            f"image_shape={tuple(wanted)} have not; it must be (channels, *size) with as many"
        )
    return tuple(wanted)


def _look(operator: Operator, hint: str) -> None:
    """Refuse an operator that the kit finds wrong.

    Raises:
        UserError: the first property that does not hold.
    """
    for case in checks(operator, probes=8):
        if case.property in _LOOKED_AT and "float32" in case.name and not case.absent:
            _refuse(operator, case, hint)


def _refuse(operator: Operator, case: Case, hint: str) -> None:
    with torch.no_grad():
        finding = case.finding()
    if not finding.ok:
        figure = (
            "" if finding.figure is None else f" (relative error {finding.figure:.1e}, at most {finding.limit:.0e})"
        )
        # What the kit advises behind the semicolon is for the author of the code.
        told = f"{finding.text.partition(';')[0]}{figure}{f'; {hint}' if hint else ''}"
        raise UserError(
            f"adapt: {operator.name} is not what an operator must be: {told}. check=False takes it as it is"
        )
