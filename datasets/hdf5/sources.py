"""Where else an HDF5 file's numbers lie: links and virtual datasets, walked to their ends before anything is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py

from invsolve.errors import UserError

_DEEP = 32
_LONG = 120
_SOURCE = "HDF5_VDS_PREFIX"
_LINK = "HDF5_EXT_PREFIX"
_BLOCK = re.compile(r"%(\d*)b")
_Stat = tuple[str, int, int, int]

#: What was found in order, with the state of every file that it depends on: a scan is opened once for each slice.
_safe: dict[_Stat, bool] = {}
_complete: dict[tuple[_Stat, int], list[_Stat]] = {}


def shown(name: bytes | str) -> str:
    """A name from a file as it can be printed: what is not UTF-8 or no character is escaped, what is long is cut."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= _LONG else f"{text[:_LONG]}... ({len(text)} characters)"


def check_outside(file: h5py.File) -> None:
    """Refuse a file that leads out of its folder: by a link, a virtual dataset or external storage.

    What such a name leads to would end in the result, and be read with the rights of whoever opened the scan.

    Raises:
        UserError: a link, or a source of a virtual dataset, is there and lies outside of the file's folder, or is no
            regular file; a dataset is in external storage, or is its own source.
    """
    _check_outside(file, [])


def _check_outside(file: h5py.File, seen: list[str]) -> None:
    state = _state(Path(file.filename))
    if _safe.get(state):
        return
    seen = [*seen, state[0]]
    targets: set[tuple[str, bytes]] = set()
    virtual: list[bytes] = []

    def link(name: bytes, info: Any) -> None:
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            targets.add((f"'{shown(name)}' is a link into", file.id.links.get_val(name)[0]))

    def thing(name: bytes, info: Any) -> None:
        if info.type != h5py.h5o.TYPE_DATASET:
            return
        try:
            properties = h5py.h5d.open(file.id, name).get_create_plist()
        except (KeyError, RuntimeError, OSError, ValueError):
            return  # It cannot be read either, and says so where it is used.
        if properties.get_external_count():
            outside = shown(properties.get_external(0)[0])
            raise UserError(
                f"{file.filename}: dataset '{shown(name)}' keeps its numbers in another file ('{outside}', external "
                "storage), which is never read; write them into this file (h5repack does)"
            )
        if properties.get_layout() == h5py.h5d.VIRTUAL:
            virtual.append(name)
            for k in range(properties.get_virtual_count()):
                targets.add((f"dataset '{shown(name)}' is assembled from", _raw(properties.get_virtual_filename(k))))

    file.id.links.visit(link, info=True)
    h5py.h5o.visit(file.id, thing, info=True)
    for what, target in sorted(targets):
        place = find(os.fsdecode(target), file, _LINK if "link" in what else _SOURCE, what)
        if place is not None and str(place.resolve()) not in seen and h5py.is_hdf5(place):
            with h5py.File(place, "r") as other:
                _check_outside(other, seen)
    for name in virtual:
        _check_no_circle(file, name, [])
    _remember(_safe, state, True)


def find(name: str, file: h5py.File, variable: str = _SOURCE, what: str = "") -> Path | None:
    """The file that HDF5 would open for a name in `file`; None when there is none.

    Args:
        name: as stored; "." is the file itself.
        file: where the name stands.
        variable: the environment's list of folders that come first.
        what: how a message begins, such as "'x' is a link into".

    Raises:
        UserError: it lies outside of the file's folder, or is no regular file.
    """
    here = Path(file.filename)
    if name == ".":
        return here
    if _BLOCK.search(name):
        # One file per block: each is looked for by its own name where the dataset is read.
        name = _BLOCK.sub(lambda m: "0".zfill(int(m[1] or 1)), name)
    path = Path(name)
    prefixes: list[str | Path] = [
        p.replace("${ORIGIN}", str(here.parent)) for p in os.environ.get(variable, "").split(":") if p
    ]
    relative = path.name if path.is_absolute() else name
    tries = [path] if path.is_absolute() else []
    own: list[str | Path] = [here.parent, here.resolve().parent]
    tries += [Path(folder) / relative for folder in (*prefixes, own[0], ".", own[1])]
    allowed = [Path(folder).resolve() for folder in prefixes + own]
    for place in tries:
        try:
            there = place.exists()
        except (OSError, ValueError):  # too long for a name, or a zero byte in it
            continue
        if not there:
            continue
        if not any(place.resolve().is_relative_to(folder) for folder in allowed):
            raise UserError(
                f"{here}: {what} '{shown(name)}', outside of the folder of this file, which is not followed; copy "
                "that file beside this one and remove the path in front of its name"
            )
        if not place.is_file():
            raise UserError(f"{here}: {what} '{shown(name)}', which is no regular file; put the data in its place")
        return place
    return None


def _raw(name: bytes | str) -> bytes:
    return name if isinstance(name, bytes) else os.fsencode(name)


def _state(path: Path) -> _Stat:
    real = path.resolve()
    stat = real.stat()
    return str(real), stat.st_ino, stat.st_size, stat.st_mtime_ns


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memory) > 10000:
        memory.clear()
    memory[key] = value


def _sources(file: h5py.File, dataset_id: h5py.h5d.DatasetID) -> list[tuple[str, str, Any, Any]]:
    """File, dataset, selection here and selection there of each part of a virtual dataset; none of any other."""
    properties = dataset_id.get_create_plist()
    if properties.get_layout() != h5py.h5d.VIRTUAL:
        return []
    return [
        (
            os.fsdecode(_raw(properties.get_virtual_filename(k))),
            os.fsdecode(_raw(properties.get_virtual_dsetname(k))),
            properties.get_virtual_vspace(k),
            properties.get_virtual_srcspace(k),
        )
        for k in range(properties.get_virtual_count())
    ]


def _check_no_circle(file: h5py.File, name: bytes, above: list[tuple[str, int]]) -> None:
    """Refuse a virtual dataset that is its own source, at any depth: HDF5 runs until its stack ends."""
    try:
        dataset_id = h5py.h5d.open(file.id, name)
    except (KeyError, RuntimeError, OSError, ValueError):
        return
    here = (str(Path(file.filename).resolve()), h5py.h5o.get_info(dataset_id).addr)
    if here in above or len(above) > _DEEP:
        how = "is its own source" if here in above else f"has sources more than {_DEEP} levels deep"
        raise UserError(f"{file.filename}: the virtual dataset '{shown(name)}' {how}; write it again")
    for file_name, dataset_name in dict.fromkeys((f, d) for f, d, *_ in _sources(file, dataset_id)):
        place = find(file_name, file)
        if place is not None and h5py.is_hdf5(place):
            with h5py.File(place, "r") as other:
                _check_no_circle(other, os.fsencode(dataset_name), [*above, here])


def check_virtual(dset: h5py.Dataset, where: str, check: Callable[[h5py.Dataset, str], None]) -> None:
    """Refuse a virtual dataset of which a part would read as zeros, whatever the depth at which it is missing.

    Args:
        dset: the dataset.
        where: how a message begins.
        check: raises UserError for a source that is itself incomplete.

    Raises:
        UserError: a source is missing, damaged, incomplete or too small, or the sources do not cover the dataset.
    """
    key = (_state(Path(dset.file.filename)), h5py.h5o.get_info(dset.id).addr)
    if key in _complete and all(_same(state) for state in _complete[key]):
        return
    parts = _sources(dset.file, dset.id)
    states: dict[Path, _Stat] = {}
    checked: dict[tuple[str, str], tuple[int, ...]] = {}
    union = h5py.h5s.create_simple(dset.shape)
    union.select_none()
    for file_name, dataset_name, here, there in parts:
        for block, box in _blocks(file_name, dataset_name, here, dset.shape, lambda name: _counted(name, dset.file)):
            names = (_numbered(file_name, block), _numbered(dataset_name, block))
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
    _remember(_complete, key, list(states.values()))


def _same(state: _Stat) -> bool:
    try:
        return _state(Path(state[0])) == state
    except OSError:
        return False


def _check_source(
    dset: h5py.Dataset,
    where: str,
    file_name: str,
    dataset_name: str,
    states: dict[Path, _Stat],
    check: Callable[[h5py.Dataset, str], None],
) -> tuple[int, ...]:
    """Shape of a source that is there and complete."""
    place = find(file_name, dset.file, _SOURCE, "a dataset is assembled from")
    if place is None:
        raise UserError(f"{where}: is assembled from '{shown(file_name)}', which is missing; put it beside this file")
    inside = "" if file_name == "." else f" of '{shown(file_name)}'"
    try:
        with h5py.File(place, "r") as other:
            _check_outside(other, [])
            source = other[dataset_name]
            if not isinstance(source, h5py.Dataset):
                raise KeyError(dataset_name)
            check(source, f"{where}: is assembled from dataset '{shown(dataset_name)}'{inside}, which")
            shape = tuple(source.shape)
            # What the source itself depends on, as its own check has just noted.
            for state in _complete.get((_state(place), h5py.h5o.get_info(source.id).addr), []):
                states[Path(state[0])] = state
    except (KeyError, RuntimeError, OSError) as error:
        reason = "has no such dataset" if isinstance(error, KeyError) else shown(" ".join(str(error).split()))
        raise UserError(
            f"{where}: is assembled from dataset '{shown(dataset_name)}'{inside}, which cannot be read ({reason}); "
            "copy or write it again"
        ) from None
    states[place] = _state(place)
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
        if open_axis is None or not (_BLOCK.search(file_name) or _BLOCK.search(dataset_name)):
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


def _numbered(name: str, block: int) -> str:
    return _BLOCK.sub(lambda m: str(block).zfill(int(m[1] or 1)), name)


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


def source_files(dset: h5py.Dataset) -> set[Path]:
    """Every file that holds numbers of a dataset, at any depth, its own among them."""
    files: set[Path] = set()
    _collect(dset.file, dset.id, files, 0)
    return files


def _counted(name: str, file: h5py.File) -> list[int]:
    """The numbers of the files that are there for a name that counts them."""
    if not _BLOCK.search(name):
        return []
    pattern = re.compile(_BLOCK.sub(r"(\\d+)", re.escape(Path(name).name)))
    folder = Path(file.filename).parent / Path(name).parent
    matches = (pattern.fullmatch(p.name) for p in (folder.iterdir() if folder.is_dir() else ()))
    return sorted({int(m[1]) for m in matches if m})


def _collect(file: h5py.File, dataset_id: h5py.h5d.DatasetID, files: set[Path], depth: int) -> None:
    files.add(Path(file.filename))
    if depth > _DEEP:
        return
    names = dict.fromkeys((f, d) for f, d, *_ in _sources(file, dataset_id))
    for file_name, dataset_name in names:
        for k in _counted(file_name, file) if _BLOCK.search(file_name) else [0]:
            place = find(_numbered(file_name, k), file)
            if place is None or not h5py.is_hdf5(place):
                continue
            with h5py.File(place, "r") as other:
                inner = other.get(_numbered(dataset_name, k))
                if isinstance(inner, h5py.Dataset):
                    _collect(other, inner.id, files, depth + 1)
