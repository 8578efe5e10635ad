"""Virtual datasets: whether their sources are all there, whole, and cover them, walked to their ends before a number is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from invsolve.datasets.hdf5.guarded import GuardedFile, sources_of
from invsolve.datasets.hdf5.links import BLOCK, LINK, SOURCE, State, find, numbered, remember, same, shown, state_of
from invsolve.errors import UserError

_DEEP = 32
#: Objects of a file, and files, that are looked through for the names of others.
_MOST = 10**5

#: Datasets that were found complete, with the state of every file that they depend on: a scan is opened once for each slice.
_complete: dict[tuple[State, int], list[State]] = {}


def check_virtual(dset: h5py.Dataset, where: str, check: Callable[[h5py.Dataset, str], None]) -> None:
    """Refuse a virtual dataset of which a part would read as zeros, whatever the depth at which it is missing.

    Args:
        dset: the dataset.
        where: how a message begins.
        check: raises UserError for a source that is itself incomplete.

    Raises:
        UserError: a source is missing, damaged, incomplete or too small, or the sources do not cover the dataset.
    """
    key = (state_of(Path(dset.file.filename)), h5py.h5o.get_info(dset.id).addr)
    if key in _complete and all(same(state) for state in _complete[key]):
        return
    states: dict[Path, State] = {}
    checked: dict[tuple[str, str], tuple[int, ...]] = {}
    union = h5py.h5s.create_simple(dset.shape)
    union.select_none()
    for file_name, dataset_name, here, there in sources_of(dset.id):
        for block, box in _blocks(file_name, dataset_name, here, dset.shape, lambda name: _counted(name, dset.file)):
            names = (numbered(file_name, block), numbered(dataset_name, block))
            if names not in checked:
                checked[names] = _check_source(dset, where, *names, states, check)
            for start, stride, count, size in _within(box, there, checked[names], dset.shape, where, names):
                union.select_hyperslab(start, count, stride, size, op=h5py.h5s.SELECT_OR)
    covered = union.get_select_npoints()
    if covered != dset.size:
        raise UserError(
            f"{where}: its sources cover {covered} of {dset.size} values (the others would read as zeros); write it "
            "again with all of them"
        )
    remember(_complete, key, list(states.values()))


def _check_source(
    dset: h5py.Dataset,
    where: str,
    file_name: str,
    dataset_name: str,
    states: dict[Path, State],
    check: Callable[[h5py.Dataset, str], None],
) -> tuple[int, ...]:
    """Shape of a source that is there and complete."""
    place = find(file_name, Path(dset.file.filename), what="a dataset is assembled from")
    if place is None:
        raise UserError(f"{where}: is assembled from '{shown(file_name)}', which is missing; put it beside this file")
    inside = "" if file_name == "." else f" of '{shown(file_name)}'"
    try:
        with GuardedFile(place, "r") as other:
            source = other[dataset_name]
            if not isinstance(source, h5py.Dataset):
                raise KeyError(dataset_name)
            check(source, f"{where}: is assembled from dataset '{shown(dataset_name)}'{inside}, which")
            shape = tuple(source.shape)
            # What the source itself depends on, as its own check has just noted.
            for state in _complete.get((state_of(place), h5py.h5o.get_info(source.id).addr), []):
                states[Path(state[0])] = state
    except (KeyError, RuntimeError, OSError) as error:
        reason = "has no such dataset" if isinstance(error, KeyError) else shown(" ".join(str(error).split()))
        raise UserError(
            f"{where}: is assembled from dataset '{shown(dataset_name)}'{inside}, which cannot be read ({reason}); "
            "copy or write it again"
        ) from None
    states[place] = state_of(place)
    return shape


Box = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _boxes(space: Any, shape: tuple[int, ...]) -> list[Box]:
    """A selection as (start, stride, count, block) per axis; what is irregular as its blocks.

    Args:
        space: the selection.
        shape: of the dataset; a selection of everything does not keep its extent in the file.
    """
    ones = (1,) * len(shape)
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return [((0,) * len(shape), ones, ones, shape)]
    if kind != h5py.h5s.SEL_HYPERSLABS:
        return []
    if space.is_regular_hyperslab():
        return [tuple(tuple(int(v) for v in part) for part in space.get_regular_hyperslab())]  # type: ignore[list-item]
    return [
        (tuple(map(int, low)), ones, ones, tuple(int(b - a + 1) for a, b in zip(low, high, strict=True)))
        for low, high in space.get_select_hyper_blocklist()
    ]


def _blocks(
    file_name: str, dataset_name: str, here: Any, shape: tuple[int, ...], numbers: Callable[[str], list[int]]
) -> Iterator[tuple[int, Box]]:
    """Each part of a selection with its number; one part a file where the name counts files ("%b")."""
    for box in _boxes(here, shape):
        start, stride, count, size = box
        open_axis = _open_axis(box)
        if open_axis is None or not (BLOCK.search(file_name) or BLOCK.search(dataset_name)):
            yield 0, box
            continue
        length = max(0, -(-(shape[open_axis] - start[open_axis]) // stride[open_axis]))
        # HDF5 lets a dataset end before the first file that is missing, whatever comes after.
        length = max(length, 1 + max(numbers(file_name), default=-1))
        for k in range(length):
            first = start[open_axis] + k * stride[open_axis]
            last = max(min(first + size[open_axis], shape[open_axis]), first)
            yield (
                k,
                (
                    _with(start, open_axis, first),
                    stride,
                    _with(count, open_axis, 1),
                    _with(size, open_axis, last - first),
                ),
            )


def _open_axis(box: Box) -> int | None:
    return next((k for k, (c, b) in enumerate(zip(box[2], box[3], strict=True)) if h5py.h5s.UNLIMITED in (c, b)), None)


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _within(
    box: Box, there: Any, have: tuple[int, ...], shape: tuple[int, ...], where: str, names: tuple[str, ...]
) -> list[Box]:
    """The part of a selection that the source really fills.

    Raises:
        UserError: the selection in the source goes beyond it.
    """
    source = _boxes(there, have)
    number = _points(box)
    if there.get_select_type() == h5py.h5s.SEL_ALL and number and number != math.prod(have):
        raise UserError(
            f"{where}: takes {number} values from dataset '{shown(names[1])}' {have} of '{shown(names[0])}', which holds "
            f"{math.prod(have)}; write that file again"
        )
    for start, stride, count, size in source:
        for k, length in enumerate(have):
            if h5py.h5s.UNLIMITED in (count[k], size[k]):
                continue
            if start[k] + (count[k] - 1) * stride[k] + size[k] > length:
                raise UserError(
                    f"{where}: is assembled from more than dataset '{shown(names[1])}' {have} of '{shown(names[0])}' "
                    "holds (the rest would read as zeros); write that file again"
                )
    open_axis = _open_axis(box)
    if open_axis is None:
        return [box]
    axis = open_axis
    # How many indices the source has along its own open axis: as many are filled here.
    filled = sum(_indices(part, have) for part in source)
    start, stride, count, size = box
    block = size[axis] if size[axis] != h5py.h5s.UNLIMITED else max(filled, 1)
    step = stride[axis] if size[axis] != h5py.h5s.UNLIMITED else max(filled, 1)
    whole, rest = divmod(filled, block)
    parts = [(start[axis], whole, block), (start[axis] + whole * step, 1, rest)]
    return [
        (_with(start, axis, first), _with(stride, axis, step), _with(count, axis, many), _with(size, axis, wide))
        for first, many, wide in parts
        if many > 0 and wide > 0 and first + (many - 1) * step + wide <= shape[axis]
    ]


def _points(box: Box) -> int:
    """Values in a selection; 0 where it has no end."""
    return 0 if _open_axis(box) is not None else math.prod(c * b for c, b in zip(box[2], box[3], strict=True))


def _indices(part: Box, have: tuple[int, ...]) -> int:
    axis = _open_axis(part)
    if axis is None:
        return 0
    start, stride, _, size = (values[axis] for values in part)
    rest = have[axis] - start
    if rest <= 0:
        return 0
    if size == h5py.h5s.UNLIMITED:
        return rest
    return rest // stride * size + min(rest % stride, size)


def other_files(path: Path) -> list[Path]:
    """Every file that an HDF5 file leads to, by a link or as the source of a dataset, at any depth; without the file itself.

    What is missing, damaged or lies in another folder is left out: it is refused where it is used.
    """
    start = path.resolve()
    known, pending = {start}, [path]
    while pending and len(known) < _MOST:
        here = pending.pop()
        with suppress(KeyError, OSError, RuntimeError, ValueError), h5py.File(here, "r") as file:
            for name in _names_in(file):
                for k in _counted(name, file) if BLOCK.search(name) else [0]:
                    place = _place(numbered(name, k), here)
                    if place is not None and place.resolve() not in known:
                        known.add(place.resolve())
                        pending.append(place)
    return sorted(known - {start})


def _place(name: str, here: Path) -> Path | None:
    for variable in (SOURCE, LINK):
        with suppress(UserError):
            place = find(name, here, variable)
            if place is not None and h5py.is_hdf5(place):
                return place
    return None


def _names_in(file: h5py.File) -> Iterator[str]:
    """The names of other files in a file, some more than once."""
    groups: list[Any] = [h5py.h5g.open(file.id, b"/")]
    seen = {h5py.h5o.get_info(groups[0]).addr}
    while groups:
        group = groups.pop()
        for member in group:
            kind = group.links.get_info(member).type
            if kind == h5py.h5l.TYPE_EXTERNAL:
                yield os.fsdecode(group.links.get_val(member)[0])
            if kind != h5py.h5l.TYPE_HARD:
                continue
            thing = h5py.h5o.open(group, member)
            address = h5py.h5o.get_info(thing).addr
            if address in seen or len(seen) > _MOST:
                continue
            seen.add(address)
            if isinstance(thing, h5py.h5g.GroupID):
                groups.append(thing)
            elif isinstance(thing, h5py.h5d.DatasetID):
                yield from dict.fromkeys(name for name, *_ in sources_of(thing))


def _counted(name: str, file: h5py.File) -> list[int]:
    """The numbers of the files that are there for a name that counts them."""
    if not BLOCK.search(name):
        return []
    pattern = re.compile(BLOCK.sub(r"(\\d+)", re.escape(Path(name).name)))
    folder = Path(file.filename).parent / Path(name).parent
    matches = (pattern.fullmatch(p.name) for p in (folder.iterdir() if folder.is_dir() else ()))
    return sorted({int(m[1]) for m in matches if m})
