"""What the header of a prior file must say, and that its weights are those of the network it describes, before one is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invsolve.contracts.prior import is_error_curve
from invsolve.errors import UserError, printable
from invsolve.networks.patches import POSITIONS, Patches
from invsolve.plugins.priors._bounds import check_bounds
from invsolve.plugins.priors._quantised import BITS

#: Versions of the header that are read.
FORMATS = (1,)
#: What a network of ours may predict.
PARAMETRISATIONS = ("edm", "flow")
#: Precisions of stored weights.
DTYPES = ("float32", "float16", "bfloat16")
#: A network of images, with its channels: a signal has two axes, a volume four.
_AXES = (2, 3, 4)


def check_header(header: Mapping[str, Any], networks: tuple[str, ...], where: str) -> None:
    """Refuse a header that says too little, or what no prior can be.

    Args:
        header: as it was read.
        networks: the classes that are known.
        where: the file, for messages.

    Raises:
        UserError: names the entry, what it says and what was expected.
    """
    if header.get("format", 1) not in FORMATS:
        raise UserError(f"{where}: is of format {_said(header['format'])}, and this version reads {FORMATS[0]}")
    architecture = header.get("architecture")
    kind = architecture.get("class") if isinstance(architecture, dict) else None
    if header.get("parametrisation") not in PARAMETRISATIONS or kind not in networks:
        known, classes = (" or ".join(map(repr, names)) for names in (PARAMETRISATIONS, networks))
        raise UserError(
            f"{where}: this version reads parametrisation {known} of class {classes}, the header says "
            f"{_said(header.get('parametrisation'))} of {_said(kind)}"
        )
    for entry, good, expected in (
        ("sigma_data", _positive(header.get("sigma_data")), "a number > 0"),
        ("noise_label_scale", _number(header.get("noise_label_scale")), "a number"),
        ("sigma_min", _positive(header.get("sigma_min")), "a number > 0"),
        ("sigma_max", _positive(header.get("sigma_max")), "a number > 0"),
        ("event_shape", _shape(header.get("event_shape")), "channels and sizes such as [1, null, null]"),
        ("data_range", _range(header.get("data_range")), "null, or two numbers [low, high]"),
        ("dtype", header.get("dtype", DTYPES[0]) in DTYPES, f"one of {', '.join(DTYPES)}"),
        ("augmented", header.get("augmented") is None or _positive(header["augmented"]), "null, or a number > 0"),
        ("bits", header.get("bits") in (None, *BITS), "null, 8 or 4"),
        ("unit", isinstance(header.get("unit"), str), "text"),
        ("source", isinstance(header.get("source"), str), "text"),
        ("error_curve", _curve(header.get("error_curve")), "null, or lists sigma and mse of one length, sigma rising"),
        ("architecture.config", _config(header["architecture"].get("config")), "the network's settings"),
    ):
        if not good:
            value = header["architecture"].get("config") if "." in entry else header.get(entry)
            raise UserError(f"{where}: {entry} is {_said(value)}, expected {expected}; write the header again")
    channels, patch = header["event_shape"][0], header.get("patch")
    if patch is not None:
        patches = Patches.from_record(patch, where)
        if header["event_shape"][1:] != list(patches.size):
            raise UserError(
                f"{where}: patch is of images of {patches.size}, event_shape says {_said(header['event_shape'])}; write the "
                "header again"
            )
    given = tuple(header["architecture"]["config"].get(key) for key in ("in_channels", "out_channels"))
    if given != (channels + (POSITIONS if patch is not None else 0), channels):
        raise UserError(
            f"{where}: the network takes and returns {_said(given)} channels, the images have {channels}"
            f"{f' and {POSITIONS} of positions' if patch is not None else ''}; write the header again"
        )
    low, high = header["sigma_min"], header["sigma_max"]
    if not low < high:
        raise UserError(f"{where}: sigma_min {low:g} is not below sigma_max {high:g}; write the header again")


def check_network(
    make: Callable[[], nn.Module], config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str
) -> None:
    """Refuse a description of another network than the weights are of; nothing as large as it may say is made.

    Args:
        make: makes the network.
        config: its settings.
        weights: name -> tensor.
        where: the file, for messages.

    Raises:
        UserError: a setting that the network refuses, one that is larger than the weights allow, names that are missing or
            left over, or a tensor of another shape.
    """
    check_bounds(config, weights, where)
    try:
        # On this device tensors have a shape and no numbers.
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    except Exception as error:  # each network refuses its settings in its own way
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: no network can be made of its settings ({type(error).__name__}: {reason})") from None
    missing = [name for name in wanted if name not in weights]
    extra = [name for name in weights if name not in wanted]
    parts = [f"{len(v)} {k}, first {_said(v[0])}" for k, v in (("missing", missing), ("left over", extra)) if v]
    wrong = [name for name in wanted if name in weights and tuple(weights[name].shape) != wanted[name]]
    if wrong:
        parts.append(f"{_said(wrong[0])} is {tuple(weights[wrong[0]].shape)}, expected {wanted[wrong[0]]}")
    if parts:
        raise UserError(f"{where}: weights do not fit the network of the header: {'; '.join(parts)}")
    bad = next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)
    if bad is not None:
        raise UserError(f"{where}: the weights {_said(bad)} are not finite; copy the file again, or train again")


def _said(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _shape(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) not in _AXES or value[0] is None:
        return False
    return all(v is None or (isinstance(v, int) and not isinstance(v, bool) and v > 0) for v in value)


def _range(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_number, value)) and value[0] < value[1]


def _curve(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and is_error_curve(value))


def _config(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("block_out_channels"), list | tuple):
        return False
    widths = value["block_out_channels"]
    return len(widths) > 0 and all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths)
