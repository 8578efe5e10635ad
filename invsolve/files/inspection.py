"""Saying what a file is: its layout, shapes, axes, units, what is missing, and the command that does something with it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

import invsolve
from invsolve import registry
from invsolve.api import fit
from invsolve.api.choice import strategies
from invsolve.api.loading import make
from invsolve.contracts.layout import Layout
from invsolve.contracts.measurement import Images, Measurement
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.datasets import hdf5
from invsolve.datasets.hdf5 import check_regular, datasets, is_matlab, is_square, open_array, open_readonly
from invsolve.engine.reading import read_rows
from invsolve.errors import UserError
from invsolve.files.commands import hint, joined, output_beside, reading_options, word
from invsolve.files.opening import find_layout, plain_arrays
from invsolve.registry.parameters import build, parameters

#: Images wider than this are binned in the suggested command, where the layout can: a prior takes minutes on them.
_LARGE = 256
#: What strategies say in `Strategy.advice` that they are for.
_QUICK, _WITH, _WITHOUT = "a quick look", "with a prior", "without a prior"
_LISTED = 12
#: Whole numbers that are shown themselves, such as an image's size or a box.
_FEW = 4


def inspect_file(
    path: Path,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
    plugins: Sequence[Path] = (),
) -> dict[str, Any]:
    """Look at a file without computing anything large.

    Args:
        path: a measurement, images, a result or a prior.
        layout: name of a layout, where the file is not recognised.
        read: the layout's options.
        plugins: plugin files that are loaded, and that the commands load again.

    Returns:
        `kind` ("measurement", "images", "result", "prior" or "unknown"), `text` for what is said about it in one line, and
        what is known: `layout`, `y`, `image`, `operator`, `noise`, `unit`, `notes`, `missing`, `problem`, `datasets`; and
        `commands`, a list of {"does", "command"}.

    Raises:
        UserError: the file cannot be opened, or the options are wrong.
    """
    facts = _inspected(path, layout, dict(read or {}))
    more = "".join(f" --plugin {word(file)}" for file in plugins)
    for entry in facts["commands"]:
        # Scoring is the one command that takes none.
        entry["command"] += "" if entry["command"].startswith("invsolve evaluate ") else more
    return facts


def _inspected(path: Path, layout: str | None, options: dict[str, Any]) -> dict[str, Any]:
    check_regular(path)
    if layout is None and path.exists() and (prior := _prior(path)) is not None:
        return _with_file(path, prior)
    named = [layout] if layout is not None else find_layout(path)
    if layout is None and (result := _result(path)) is not None:
        return _with_file(path, result)
    for name in named:
        return _with_file(path, _by_layout(path, name, options, layout is not None))
    return _with_file(path, _hdf5(path, options))


def _with_file(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    listed: dict[str, str] = {}
    if path.is_file() and _is_hdf5(path):
        with open_readonly(path) as file:
            listed = datasets(file)
    return {"file": str(path), **facts, "datasets": listed}


def _is_hdf5(path: Path) -> bool:
    # MATLAB's files begin with 512 bytes of their own: the signature may stand further on.
    return h5py.is_hdf5(path)


def _prior(path: Path) -> dict[str, Any] | None:
    for kind, cls in registry.available("prior").items():
        if cls.opens(path):  # type: ignore[attr-defined]
            name = word(path)
            return {
                "kind": "prior",
                "format": kind,
                "text": f"a prior, of format {kind}",
                "commands": [
                    hint("what it knows", f"invsolve prior show {name}"),
                    hint("use it", f"invsolve reconstruct SCAN.h5 -o RECON.h5 --prior {name}"),
                ],
            }
    return None


def _result(path: Path) -> dict[str, Any] | None:
    """What a result file says, or None when it is none."""
    if not path.is_file() or not _is_hdf5(path):
        return None
    with open_readonly(path) as file:
        if "done" not in file or ("config" not in file.attrs and "config" not in file):
            return None
    view = hdf5.read_result(path)
    items, size = len(view.mean), " x ".join(map(str, view.mean.shape[1:]))
    name = word(path)
    commands = [hint("pictures", f"invsolve report {name} -o {output_beside(path, '_report.html')}")]
    if view.truth is not None:
        commands.append(hint("score against the truth it carries", f"invsolve evaluate {name}"))
    strategy, prior = (view.config.get(k) or {} for k in ("strategy", "prior"))
    state = "" if view.complete else f", unfinished ({len(view.items)} items are done; the same command goes on)"
    return {
        "kind": "result",
        "text": f"a result of {strategy.get('name', '?')}{state}",
        "image": {"items": items, "shape": list(view.mean.shape[1:]), "unit": view.unit},
        "samples": view.samples.shape[1],
        "strategy": strategy.get("name"),
        "prior": prior.get("name"),
        "notes": [f"{items} items of {size}, {view.samples.shape[1]} samples each", *view.config.get("notes", [])],
        "missing": [] if view.truth is not None else ["truth: to score it give invsolve evaluate --truth IMAGES.h5"],
        "commands": commands,
    }


def _by_layout(path: Path, name: str, options: dict[str, Any], given: bool) -> dict[str, Any]:
    cls = registry.find("layout", name)
    reader: Layout = build(cls, "layout", name, options)
    reading = reading_options(name if given else None, options)
    problems = []
    opened: Measurement | Images
    for method in ("open", "images"):
        if getattr(cls, method) is getattr(Layout, method):
            continue
        try:
            opened = reader.open(path, make) if method == "open" else reader.images(path)
            break
        except UserError as error:
            problems.append(" ".join(str(error).split()))
    else:
        return {
            "kind": "unknown" if given else "measurement",
            "layout": name,
            "text": f"of layout {name}, but it cannot be read as it stands",
            "problem": problems[0],
            "missing": [problems[0]],
            "commands": _array_guesses(path, cls, options),
        }
    if isinstance(opened, Measurement):
        return {"layout": name, **_measurement(path, opened, cls, options, reading)}
    looked = {"layout": name, **_images(path, opened, reading)}
    # Arrays whose axes nobody named could as well be sinograms.
    looked["commands"] += [c for c in _array_guesses(path, cls, options) if "sinograms" in c["does"]]
    return looked


def _measurement(
    path: Path, measurement: Measurement, cls: type, options: dict[str, Any], reading: list[str]
) -> dict[str, Any]:
    first = read_rows(measurement, 0, 1)
    shape = fit.image_shape(measurement, None)
    shape = (1, *shape[1:]) if measurement.operator.complex_image else shape
    operator = measurement.operator
    noise = (
        None
        if measurement.noise is None
        else {"name": measurement.noise.name, **_numbers(measurement.noise.settings())}
    )
    missing = list(measurement.missing)
    extra: list[str] = []
    if measurement.noise is None:
        sigma = _noise_level(first)
        extra = ["--noise", f"{Gaussian.name}:{sigma:.3g}"]
        missing.append(f"the commands below take noise {sigma:.3g}, estimated from neighbouring values")
        missing = [line for line in missing if not line.startswith("noise level: give")]
    commands = []
    name = word(path)
    if quick := _advised(_QUICK):
        begin = f"invsolve reconstruct {name} -o {output_beside(path, '_pinv.h5')}"
        commands.append(hint(_QUICK, joined(begin, quick, reading, extra)))
    begin = f"invsolve reconstruct {name} -o {output_beside(path, '_recon.h5')}"
    smaller, note = _smaller(shape, cls, options)
    if note:
        missing.append(note)
    prior = _advised_prior(operator.name)
    chosen = _advised(_WITH) if prior is not None else _advised(_WITHOUT)
    if prior is not None and chosen:
        chosen = f"--prior {prior.name} {chosen}"
        # A file without a unit cannot be told from the prior's unit by itself.
        chosen += " --scale auto" if prior.unit and not measurement.unit else ""
    if chosen:
        commands.append(hint(_WITH if prior else _WITHOUT, joined(begin, chosen, [*reading, *smaller], extra)))
    return {
        "kind": "measurement",
        "text": f"a measurement by operator {operator.name}",
        "y": {
            "items": len(measurement.y),
            "shape": list(first.shape[1:]),
            "dtype": str(first.dtype)[6:],
            "axes": measurement.axes,
        },
        "image": {
            "items": len(measurement.y),
            "shape": list(measurement.crop(torch.empty(shape)).shape),
            "unit": measurement.unit,
            "complex": operator.complex_image,
        },
        "operator": {"name": operator.name, **_numbers(operator.parameters_given or {}), **_pattern(operator)},
        "noise": noise,
        "truth": measurement.truth is not None,
        "notes": measurement.notes,
        "missing": missing,
        "commands": commands,
    }


def _images(path: Path, images: Images, reading: list[str]) -> dict[str, Any]:
    first = images.x[0:1]
    shape = list(first.shape[1:])
    name = word(path)
    span = _spread(first) or 1.0
    finite = bool(first.isfinite().all())
    grey = len(shape) == 3 and shape[0] == 1
    how, summed = _advised_operator(grey and (images.spacing is None or is_square(images.spacing)))
    # A ray crosses the whole image; a pixel is measured alone.
    sigma = 0.01 * span * (shape[-1] if summed else 1)
    begin = f"invsolve simulate {name} -o {output_beside(path, '_scan.h5')}"
    noise = ["--noise", f"{Gaussian.name}:{sigma:.3g}"]
    commands = [hint("measure them", joined(begin, how, reading, noise))] if how else []
    return {
        "kind": "images",
        "text": "images",
        "image": {
            "items": len(images.x),
            "shape": shape,
            "dtype": str(first.dtype)[6:],
            "axes": images.axes,
            "unit": images.unit,
            "spacing": None if images.spacing is None else list(images.spacing),
            "spacing_unit": images.spacing_unit,
            "range_of_first": [float(first.real.min()), float(first.real.max())],
        },
        "notes": images.notes,
        "missing": [*images.missing, *([] if finite else ["the first image has NaN or infinite values; replace them"])],
        "commands": commands if finite else [],
    }


def _hdf5(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """HDF5 that no layout recognises: images of our own, or what the array layout could make of each dataset."""
    with open_readonly(path) as file:
        # A name that is no UTF-8 is listed as it can be printed, and cannot be asked for; # begins MATLAB's book-keeping.
        there = {n: file[n] for n in _here(file) if n in file and not n.startswith("#")}
        shapes = {
            n: (d.shape or (), "c" if d.dtype.names == ("real", "imag") else d.dtype.kind) for n, d in there.items()
        }
        reverse = any(is_matlab(d) for d in there.values())
    if reverse:
        return _matlab(path, shapes)
    if "x" in shapes:
        x = hdf5.read_images(path)
        return {"layout": invsolve.__name__, **_images(path, Images(x, source=str(path)), [])}
    hints = [h for name, (shape, kind) in shapes.items() for h in _guesses(path, name, shape, kind)]
    with open_readonly(path) as file:
        likely = [name for name, cls in registry.available("layout").items() if cls.resembles(file)]  # type: ignore[attr-defined]
    for name in likely:
        command = f"invsolve inspect {word(path)} --layout {name}"
        hints.insert(0, hint(f"if it is of layout {name}", command))
    return {
        "kind": "unknown",
        "text": "HDF5 of no known layout",
        "notes": [],
        "missing": [
            f"which dataset holds what, and the names of its axes: --layout {plain_arrays()} --read dataset=... --read axes=..."
        ],
        "commands": hints[:_LISTED],
    }


def _here(file: Any) -> list[str]:
    """Names of the datasets whose numbers lie in the file's folder."""
    names = []
    for name in datasets(file):
        with suppress(UserError):
            if name in file and file[name].shape is not None:
                names.append(name)
    return names


def _matlab(path: Path, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
    """MATLAB's files of version 7.3, whose axes are in reverse."""
    hints = [h for name, (shape, kind) in shapes.items() for h in _guesses(path, name, shape, kind, reverse=True)]
    return {
        "kind": "unknown",
        "text": "a MATLAB file (7.3)",
        "notes": [
            f"{n}: {' x '.join(map(str, reversed(s)))} in MATLAB, in reverse in the file"
            for n, (s, _) in shapes.items()
        ],
        "missing": [
            "which variable holds what, and the names of its axes in the file's order: "
            f"--layout {plain_arrays()} --read dataset=... --read axes=..."
        ],
        "commands": hints[:_LISTED],
    }


def _array_guesses(path: Path, cls: type, options: dict[str, Any]) -> list[dict[str, str]]:
    if "axes" not in {p.name for p in parameters(cls)} or "axes" in options:
        return []
    try:
        source = open_array(path, options.get("dataset"))
    except UserError:
        return []
    return _guesses(path, options.get("dataset"), source.shape, source.dtype.kind)


def _guesses(
    path: Path, name: str | None, shape: tuple[int, ...], kind: str, reverse: bool = False
) -> list[dict[str, str]]:
    """What the axes of an array could be, each with the command to look at it so; `reverse`: as MATLAB stores them."""
    if kind not in "fiuc" or len(shape) not in (2, 3, 4) or min(shape[-2:]) < 4:
        return []
    axes = {
        2: "row,column",
        3: "item,row,column" if kind != "c" else "coil,row,column",
        4: "item,channel,row,column" if kind != "c" else "slice,coil,row,column",
    }[len(shape)]
    if reverse:
        # In MATLAB rows, columns, then the rest: in the file the rest, columns, rows.
        axes = axes.replace("row,column", "column,row")
    what = f"{name} {shape}" if name else f"the array {shape}"
    begin = f"invsolve inspect {word(path)}"
    if name:
        begin += f" --layout {plain_arrays()} --read {shlex.quote(f'dataset={name}')}"
    hints = [hint(f"if the axes of {what} are {axes}", f"{begin} --read axes={axes}")]
    if kind != "c" and len(shape) == 3 and not reverse:
        command = f"{begin} --read axes=row,angle,detector --read angles={shape[1]} --read values=integrals"
        hints.append(hint(f"if it holds sinograms of {shape[1]} angles on [0, 180) degrees", command))
    return hints


def _advised(purpose: str) -> str:
    """The registered strategy that is advised for this, as options; empty where there is none."""
    for name in strategies(lambda cls: cls.advice[0] == purpose):
        options = registry.find("strategy", name).advice[1]  # type: ignore[attr-defined]
        return f"--strategy {name} {options}".rstrip()
    return ""


def _advised_prior(operator: str) -> Prior | None:
    """The registered prior that is advised with this operator, else one for any."""
    for wanted in (operator, "*"):
        for cls in registry.available("prior").values():
            if issubclass(cls, Prior) and wanted in cls.advised_for:
                return cls()
    return None


def _advised_operator(grey: bool) -> tuple[str, bool]:
    """An operator for images, as options, of grey ones first one that is made for their size; and whether it is."""
    advised = {n: cls for n, cls in registry.available("operator").items() if cls.advice}  # type: ignore[attr-defined]
    sized = {n: "image_size" in {p.name for p in parameters(cls)} for n, cls in advised.items()}
    for name in sorted(advised, key=lambda n: not sized[n]):
        if grey or not sized[name]:
            return f"--operator {name} {advised[name].advice}", sized[name]  # type: ignore[attr-defined]
    return "", False


def _noise_level(y: torch.Tensor) -> float:
    """Standard deviation of noise from second differences along the last axis, where structure matters least."""
    values = (torch.view_as_real(y).movedim(-1, 0) if y.is_complex() else y).double()
    if values.shape[-1] < 3:
        return 0.01
    second = values[..., 2:] - 2 * values[..., 1:-1] + values[..., :-2]
    level = float(second.abs().median()) / 0.6745 / math.sqrt(6)
    return level or 1e-3 * _spread(values) or 1e-3


def _spread(values: torch.Tensor) -> float:
    """Standard deviation of numbers; 0 where they have none: one number, or some that are not finite."""
    spread = float((values.real if values.is_complex() else values).double().std(correction=0))
    return spread if math.isfinite(spread) else 0.0


def _smaller(shape: tuple[int, ...], cls: type, options: dict[str, Any]) -> tuple[list[str], str]:
    """Options that make a large image smaller, where the layout has them, and a line that says so."""
    if max(shape[1:]) <= _LARGE or "bin" in options:
        return [], ""
    if "bin" not in {p.name for p in parameters(cls)}:
        return [], ""
    factor = math.ceil(max(shape[1:]) / _LARGE)
    return ["--read", f"bin={factor}"], (
        f"size: {shape[-2]} x {shape[-1]} pixels take a prior long; the command with a prior averages {factor} detector "
        "pixels, leave --read bin out for all"
    )


def _pattern(operator: Operator) -> dict[str, str]:
    """A mask that is the name of a pattern, with the part of the measurement that it is."""
    name = (operator.parameters_given or {}).get("mask")
    measured = operator.measured() if isinstance(name, str) else None
    return {} if measured is None else {"mask": f"{name}, {measured.float().mean():.1%} measured"}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON: numbers as they are, text from its beginning, arrays as their shape and range."""
    facts: dict[str, Any] = {}
    for key, value in values.items():
        array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if isinstance(value, str | int | float | bool) or value is None:
            facts[key] = f"{value[:77]}..." if isinstance(value, str) and len(value) > 80 else value
        elif array.size == 1:
            facts[key] = array.ravel()[0].item()
        elif array.ndim == 1 and array.size <= _FEW and array.dtype.kind in "iu":
            facts[key] = array.tolist()
        elif array.dtype.kind == "b":
            facts[key] = f"{' x '.join(map(str, array.shape))}, {array.mean():.1%} measured"
        elif array.dtype.kind in "fiu":
            facts[key] = f"{' x '.join(map(str, array.shape))}, {array.min():.4g} to {array.max():.4g}"
        else:
            facts[key] = f"{' x '.join(map(str, array.shape))} {array.dtype}"
    return facts
