"""Joining result files of parts of an input into one, with a check that they belong together and that nothing is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.reading import dataset, open_readonly, read, text
from invsolve.datasets.hdf5.result import IMAGES, allocate
from invsolve.datasets.hdf5.result_check import outline, stored_config
from invsolve.datasets.hdf5.resume import changed
from invsolve.datasets.hdf5.writing import check_target, replace
from invsolve.errors import UserError


@dataclass(frozen=True)
class Part:
    """What a result file, finished or partial, holds: its configuration, the input's items it is for, and those done."""

    path: Path
    config_sha256: str
    items: list[int]
    done: list[int]


def glance(path: Path) -> Part | None:
    """What a result file holds; None when there is none, or it cannot be read now (damaged, or being written)."""
    with suppress(UserError, OSError, KeyError), open_readonly(path) as file:
        known = outline(file, path)
        done = [known.items[row] for row in np.flatnonzero(known.done)]
        return Part(path, text(file.attrs["config_sha256"]), known.items, done)
    return None


def join_results(
    path: str | Path,
    parts: Sequence[Path],
    items: range | None = None,
    overwrite: bool = False,
    temporary: Path | None = None,
) -> range:
    """Copy the finished items of several results of one configuration into one result file.

    Every checksum is verified on the way. The file appears under its name only when it is complete; parts stay.

    Args:
        path: the result to write.
        parts: result files, or partial ones, such as runs with different `--slices` wrote. Where two hold the same item,
            the first counts.
        items: which must be there; default all from the first to the last that there are.
        overwrite: replace an existing result.
        temporary: where it is built, on the same disk; default beside it.

    Returns:
        The items.

    Raises:
        UserError: parts of different configurations, items missing, or a file that cannot be read or written.
    """
    target = Path(path)
    check_target(target)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    fresh = temporary or target.with_name(f"{target.name}.joining")
    with ExitStack() as stack:
        sources = [(part, stack.enter_context(open_readonly(part))) for part in parts]
        _check_one_run(sources)
        where = _where(sources)
        if not where:
            raise UserError(f"{target}: none of the {len(parts)} files holds a finished item")
        span = items or range(min(where), max(where) + 1)
        if missing := _missing(span, where):
            raise UserError(f"{target}: items {_spans(missing)} are in none of the parts; finish those first")
        try:
            with h5py.File(fresh, "w") as file:
                _copy(file, sources[0][1], span, where)
            replace(fresh, target)
        except OSError as error:
            raise UserError(f"{fresh}: cannot be written ({' '.join(str(error).split())}); check the space") from None
        finally:
            fresh.unlink(missing_ok=True)
    return span


def _check_one_run(sources: Sequence[tuple[Path, h5py.File]]) -> None:
    for path, file in sources:
        if "done" not in file or "items" not in file or "config_sha256" not in file.attrs:
            raise UserError(f"{path}: is no result file of invsolve; give files that invsolve reconstruct wrote")
    first_path, first = sources[0]
    whole = outline(first, first_path).input_items
    for path, file in sources[1:]:
        if (number := outline(file, path).input_items) != whole:
            raise UserError(
                f"{path}: is of an input of {number} items, {first_path} of one of {whole}; join results of one run"
            )
        if text(file.attrs["config_sha256"]) != text(first.attrs["config_sha256"]):
            changes = changed(stored_config(first, first_path), stored_config(file, path))
            raise UserError(
                f"{path}: is of another configuration than {first_path} ({'; '.join(changes[:4]) or 'unknown'}); join "
                "results of one run only"
            )


def _where(sources: Sequence[tuple[Path, h5py.File]]) -> dict[int, tuple[h5py.File, int]]:
    """Item of the input -> the file and the row that hold it."""
    places: dict[int, tuple[h5py.File, int]] = {}
    for path, file in sources:
        known = outline(file, path)
        for row in np.flatnonzero(known.done):
            places.setdefault(known.items[row], (file, int(row)))
    return places


def _missing(span: range, where: Mapping[int, Any]) -> range | list[int]:
    """The items that no file has: all of the first gap where there are more than could be listed."""
    if len(span) - len(where) <= 10**6:
        return [item for item in span if item not in where]
    ends = sorted({span.start - 1, *where, span.stop})
    low, high = next((a, b) for a, b in pairwise(ends) if b - a > 1)
    return range(low + 1, high)


def _copy(file: h5py.File, first: h5py.File, items: range, where: Mapping[int, tuple[h5py.File, int]]) -> None:
    for name, value in first.attrs.items():
        file.attrs[name] = value
    if "config" in first:
        file["config"] = first["config"][()]
    file["items"] = np.arange(items.start, items.stop)
    names, shapes = _names(where[items[0]][0]), {}
    for name in names:
        like = dataset(where[items[0]][0], name)
        shapes[name] = like.shape[1:]
        allocate(file, name, len(items), np.empty(like.shape[1:], like.dtype))
    for row, item in enumerate(items):
        source, place = where[item]
        if _names(source) != names:
            raise UserError(f"{source.filename}: holds {', '.join(_names(source))}, expected {', '.join(names)}")
        for name in names:
            values = read(dataset(source, name), place)
            if values.shape != shapes[name]:
                raise UserError(
                    f"{source.filename}: {name} is {values.shape} per item, expected {shapes[name]} as in the others"
                )
            if name == "mean" and not np.isfinite(values).all():
                raise UserError(f"{source.filename}: item {item} is not finite; remove this file and run again")
            file[name][row] = values


def _names(file: h5py.File) -> list[str]:
    """The datasets with one row per item; what else a link names was put there by somebody, and is left out."""
    own = [n for n in file if n in IMAGES or file.get(n, getclass=True, getlink=True) is h5py.HardLink]
    members = [*own, *[f"diagnostics/{name}" for name in file.get("diagnostics", ())]]
    names = [name for name in members if name not in ("config", "items", "diagnostics")]
    if odd := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{file.filename}: holds '{shown(odd[0])}', which no result has; remove it from a copy")
    return sorted(names)


def _spans(items: Sequence[int]) -> str:
    """Items as ranges: 3:5, 9:10."""
    if isinstance(items, range):
        return f"{items.start}:{items.stop} and more"
    cuts = [k for k in range(1, len(items)) if items[k] != items[k - 1] + 1]
    runs = [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    return ", ".join(f"{run[0]}:{run[-1] + 1}" for run in runs[:5]) + more
