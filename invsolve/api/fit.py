"""Fitting measurement, operator and prior to one another: image shape, measurement shape, and scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.measurement import Measurement
from invsolve.contracts.module import placed
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.returned import called, check_rows
from invsolve.contracts.scale import Scale
from invsolve.contracts.whitening import weighted, white
from invsolve.engine.reading import read_rows
from invsolve.errors import UserError


def image_shape(measurement: Measurement, prior: Prior | None) -> tuple[int, ...]:
    """The shape (C, *spatial) of the images: the operator's, the file's, the prior's, else what the measurement's suggests."""
    forward, measured = measurement.operator_for(0), tuple(measurement.y[:1].shape[1:])
    channels = prior.event_shape[0] if prior is not None else None
    if forward.image_shape is None and measurement.image_shape is not None:
        own = (channels or 2) if forward.complex_image else measurement.image_shape[0]
        shape: tuple[int, ...] | None = (own, *measurement.image_shape[1:])
    elif forward.image_shape is None and prior is not None and None not in prior.event_shape:
        spatial = tuple(s for s in prior.event_shape[1:] if s is not None)
        shape = (prior.event_shape[0] or 1, *spatial)
    elif forward.complex_image and forward.image_shape is not None:
        shape = (channels or 2, *forward.image_shape[1:])
    else:
        shape = forward.image_shape_for(measured, channels or measured[0])
        if shape is not None and forward.complex_image:
            shape = (channels or 2, *shape[1:])
    if shape is None:
        raise UserError(
            f"the image size cannot be told from measurements of shape {measured}{_complaint(forward, measured)}; set "
            "image_shape in the operator, such as self.image_shape = (1, 128, 128), or give Measurement(image_shape=...)"
        )
    if prior is not None:
        prior.check_shape(shape)
    return shape


def _complaint(forward: Operator, shape: tuple[int, ...]) -> str:
    """What an operator has against images of this shape, in brackets; nothing where it does not say."""
    try:
        forward.measurement_shape(shape)
    except UserError as error:
        return f" ({error})"
    except (RuntimeError, ValueError, IndexError):
        pass
    return ""


def own_shape(measurement: Measurement) -> tuple[int, ...] | None:
    """The shape (C, *spatial) of the operator's images by it and the data alone, complex ones with one channel; None where
    they do not tell."""
    forward = measurement.operator_for(0)
    if forward.image_shape is not None or forward.complex_image:
        return forward.image_shape
    return measurement.image_shape or forward.image_shape_for(measurement.y[:1].shape[1:])


def check_measurement(measurement: Measurement, shape: tuple[int, ...]) -> None:
    """Refuse measurements whose shape the operator would not give; name a permutation when that would fit."""
    check_items(measurement.operator, len(measurement.y), measurement.source or "y")
    forward = measurement.operator_for(0)
    got = tuple(measurement.y[:1].shape[1:])
    with torch.no_grad():
        image = forward.blank(1, (1, *shape[1:]) if forward.complex_image else shape)
        predicted = check_rows(forward(image), image, called("operator", forward), "forward")
    wanted = tuple(predicted.shape[1:])
    where = f"{measurement.source}: " if measurement.source else ""
    if got != wanted:
        hint = "; the axes look permuted: y must be (items, *measurement)" if sorted(got) == sorted(wanted) else ""
        hint = hint or masks_for_items(forward, len(measurement.y))
        raise UserError(
            f"{where}y has measurements of shape {got}, but operator {forward.name or type(forward).__name__!r} gives "
            f"{wanted} for images {shape}{hint}"
        )
    if measurement.noise is not None:
        measurement.noise.check_shape((len(measurement.y), *got))
    name = f"operator {forward.name or type(forward).__name__!r}"
    if predicted.is_complex() and not measurement.y[:1].is_complex():
        raise UserError(f"{where}y is real, but {name} measures complex numbers; give complex64 data")
    if measurement.y[:1].is_complex() and not predicted.is_complex():
        raise UserError(
            f"{where}y is complex, but {name} measures real numbers of real images; give real and imaginary part as items of "
            "their own, torch.cat([y.real, y.imag])"
        )


def masks_for_items(forward: Operator, items: int) -> str:
    """A hint where channels were made of what may have been meant for items: as many of them, and more than one."""
    channels = (forward.image_shape or (1,))[0]
    if forward.item_axes.get("mask") == 3 and channels == items > 1:
        return f"; if its {items} masks are those of the {items} items, give mask[:, None], (items, 1, rows, columns)"
    return ""


def check_items(operator: Operator, items: int, where: str) -> None:
    """Refuse an operator with parameters for each item (masks, kernels, coil maps) that are not as many as there are items.

    Raises:
        UserError: they are not.
    """
    if operator.items not in (None, items):
        # Two sets of coil maps (soft SENSE) look like maps of two items.
        sets = "; of several sets of coil maps give the first" if "coil_maps" in operator.for_item(0).item_axes else ""
        raise UserError(
            f"{where}: has {items} items, but operator {operator.name or type(operator).__name__!r} has parameters for "
            f"{operator.items}; give it as many as there are items, or one for all{sets}"
        )


def noisiest(measurement: Measurement) -> int:
    """The item whose best entry is noisier than that of any other; 0 where all have the same noise."""
    noise, axes = measurement.noise, measurement.y[:1].ndim
    if isinstance(noise, Gaussian) and isinstance(noise.sigma, Tensor) and noise.sigma.ndim == axes:
        return int(noise.sigma.flatten(1).amin(1).argmax())
    return 0


def choose_scale(
    measurement: Measurement,
    forward: Operator,
    prior: Prior | None,
    given: Scale | tuple[float, float] | str | None,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    items: Sequence[int] | None = None,
) -> Scale:
    """The map between network and physical units: given, the file's, the prior's own, or estimated from the data.

    That is from linear reconstructions of `items`, or of 16 that are spread over the data.
    """
    if isinstance(given, Scale):
        return given
    if isinstance(given, tuple):
        return Scale.from_range(*given)
    if given is None and measurement.scale is not None:
        return measurement.scale
    own = prior.data_range if prior is not None else None
    same_unit = not measurement.unit or (prior is not None and measurement.unit == prior.unit)
    if given is None and (same_unit or (prior is None and not isinstance(forward, LinearOperator))):
        return Scale() if own is None else Scale.from_range(*own, origin="prior")
    if not isinstance(forward, LinearOperator):
        raise UserError("the scale of a nonlinear operator cannot be estimated: give scale=(low, high)")
    signed = forward.complex_image and shape[0] == 2
    bottom, top = _extent(measurement, forward, device, dtype, items)
    if prior is None:
        # What is iterated should not be a millionth of a unit. Physical images then start at zero.
        return Scale.from_range(-top if signed else 0.0, top, origin="estimated")
    if own is None:
        # Network units are physical units of another kind, of which only the range is known, and zero where it has a sign.
        low, high = (-top, top) if signed else (0.0 if forward.complex_image else bottom, top)
        return Scale.from_range(low, high, origin="estimated")
    low, high = stretched(own, prior.unit, bottom, top)
    if not high > low:
        raise UserError("the scale cannot be estimated: the linear reconstruction is negative; give scale=(low, high)")
    return Scale.from_range(low, high, origin="estimated")


def stretched(own: tuple[float, float], unit: str, bottom: float, top: float) -> tuple[float, float]:
    """A prior's range, brought to images from bottom to top; no rising one where they are not above air.

    Air is air in every unit: zero, and -1000 HU. The range is stretched about it, never moved.

    Args:
        own: the range, in `unit`.
    """
    air = -1000.0 if unit == "HU" else 0.0
    low, high = (value - air for value in own)
    factor = (max(top, abs(bottom)) if low < 0 else top) / max(abs(low), abs(high))
    return factor * low, factor * high


def _extent(
    measurement: Measurement,
    forward: LinearOperator,
    device: torch.device,
    dtype: torch.dtype,
    items: Sequence[int] | None,
) -> tuple[float, float]:
    """The range (0.5 to 99.5 %) of the linear reconstruction, median of some items, else of up to 16 spread over the data.

    Of complex images it is that of the modulus.

    Raises:
        UserError: it is constant.
    """
    count = len(measurement.y)
    picked = items if items is not None else sorted({int(i) for i in np.linspace(0, count - 1, min(count, 16))})
    low, high = [], []
    for item in picked:
        y = read_rows(measurement, item, item + 1).to(device)
        y = y.to(dtype.to_complex() if y.is_complex() else dtype)
        own = placed(measurement.operator_for(item), device) if measurement.items_differ else forward
        noise = None if measurement.noise is None else measurement.noise.rows([item], y.ndim)
        level: float | Tensor = 0.0
        if isinstance(noise, Gaussian):
            level, weight = white(noise.sigma, y, own.measured())
            if weight is not None:
                own, y = weighted(own, weight, shared=False), weight * y
        elif noise is not None:
            y = noise.predicted_from(y)
        assert isinstance(own, LinearOperator)
        with torch.no_grad():
            # The level is that of y, and the unit of the image is what is sought.
            image = own.baseline(y, level if own.ridge_by_noise else 0.0)
        values = (image.abs() if image.is_complex() else image).flatten().double().cpu().numpy()
        low.append(np.quantile(values, 0.005))
        high.append(np.quantile(values, 0.995))
    bottom, top = float(np.median(low)), float(np.median(high))
    if not top > bottom:
        raise UserError("the scale cannot be estimated: the linear reconstruction is constant; give scale=(low, high)")
    return bottom, top
