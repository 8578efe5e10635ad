"""An HDF5 file that leads nowhere else: links and the sources of datasets are looked at when they are asked for, one by one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from invsolve.datasets.hdf5.links import LINK, SOURCE, State, find, raw, remember, same, shown, state_of
from invsolve.errors import UserError

#: HDF5 itself follows so many links of one name, and no more.
_LINKS = 16
_DEEP = 32
#: Parts of a virtual dataset, and of its sources at any depth: HDF5 opens each.
_PARTS = 10**6

#: Datasets that were found in order, with the state of every file that they depend on: a scan is opened once for each slice.
_safe: dict[tuple[State, int], list[State]] = {}


class _Guarded:
    """What files and groups share: members are looked at before they are opened."""

    def __getitem__(self: Any, name: Any) -> Any:
        if isinstance(name, str | bytes):
            _check_path(self.id, name)
        return _guarded(super().__getitem__(name))  # type: ignore[misc]

    def get(
        self: Any, name: str | bytes, default: Any = None, getclass: bool = False, getlink: bool = False, **more: Any
    ) -> Any:
        """As of h5py, but for members that lead outside, which are refused."""
        if getlink:
            _check_path(self.id, name, last=False)
            return super().get(name, default, getclass, getlink, **more)  # type: ignore[misc]
        try:
            member = self[name]
        except KeyError:
            return default
        return type(member) if getclass else member

    def __contains__(self: Any, name: str | bytes) -> bool:
        try:
            _check_path(self.id, name)
        except UserError:
            # It is there, and refused by whoever asks for it.
            return True
        return bool(super().__contains__(name))  # type: ignore[misc]

    @property
    def file(self: Any) -> GuardedFile:
        """The file in which it lies."""
        return GuardedFile(self.id)


class GuardedFile(_Guarded, h5py.File):
    """An `h5py.File` of which nothing that lies in another folder is opened.

    A link or a dataset that leads there is refused where it is used, with UserError; the rest of the file can be read.
    """


class GuardedGroup(_Guarded, h5py.Group):
    """A group of a `GuardedFile`."""


class GuardedDataset(h5py.Dataset):
    """A dataset of a `GuardedFile`: its sources are looked at before its numbers are read."""

    _checked = False

    def _check(self) -> None:
        if not self._checked:
            check_dataset(self.id)
            self._checked = True

    def __getitem__(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        return super().__getitem__(*arguments, **options)

    # HDF5 opens the sources of a virtual dataset that may grow to say how large it is.
    @property
    def shape(self) -> tuple[int, ...] | None:
        """As of h5py."""
        self._check()
        return super().shape

    @property
    def ndim(self) -> int:
        """As of h5py."""
        self._check()
        return int(super().ndim)

    def read_direct(self, *arguments: Any, **options: Any) -> None:
        """As of h5py."""
        self._check()
        super().read_direct(*arguments, **options)

    @property
    def file(self) -> GuardedFile:
        """The file in which it lies."""
        return GuardedFile(self.id)


def _guarded(member: Any) -> Any:
    if isinstance(member, h5py.Dataset):
        return GuardedDataset(member.id)
    return GuardedGroup(member.id) if isinstance(member, h5py.Group) else member


def _check_path(start: Any, name: str | bytes, followed: list[bytes] | None = None, last: bool = True) -> None:
    """Refuse a name on whose way a link leads out of its file's folder; what is missing is left to who opens it.

    Args:
        start: the group that the name is of.
        name: members, one in another.
        followed: the links on the way here.
        last: whether the last member is followed, too.

    Raises:
        UserError: a link lies on the way and leads to another folder, or to no regular file.
    """
    followed = [] if followed is None else followed
    text = os.fsencode(name) if isinstance(name, str) else name
    parts = [part for part in text.split(b"/") if part not in (b"", b".")]
    try:
        here = h5py.h5g.open(start, b"/") if text.startswith(b"/") else start
        for k, part in enumerate(parts):
            final = k == len(parts) - 1
            # HDF5 gives up on a name with more links, wherever they are.
            if (
                not isinstance(here, h5py.h5g.GroupID | h5py.h5f.FileID)
                or len(followed) > _LINKS
                or (final and not last)
            ):
                return
            kind = here.links.get_info(part).type
            if kind != h5py.h5l.TYPE_HARD:
                followed.append(part)
            if kind == h5py.h5l.TYPE_SOFT:
                _check_path(here, here.links.get_val(part), followed)
            elif kind == h5py.h5l.TYPE_EXTERNAL:
                _check_link(here, part, followed)
            if not final:
                here = h5py.h5o.open(here, part)
    except UserError:
        raise
    except (KeyError, OSError, RuntimeError, ValueError):
        # It cannot be opened either, and says so.
        return


def _check_link(group: Any, member: bytes, followed: list[bytes]) -> None:
    """Refuse an external link that leads to another folder, itself or by what it leads to."""
    target, name = group.links.get_val(member)
    place = find(os.fsdecode(target), _file_of(group), LINK, f"'{shown(member)}' is a link into")
    if place is not None and h5py.is_hdf5(place):
        with h5py.File(place, "r") as other:
            _check_path(other.id, name if name.startswith(b"/") else b"/" + name, followed)


def _file_of(thing: Any) -> Path:
    return Path(os.fsdecode(h5py.h5f.get_name(thing)))


def sources_of(dataset: h5py.h5d.DatasetID) -> Iterator[tuple[str, str, Any, Any]]:
    """File, dataset, selection here and selection there of each part of a virtual dataset; none of any other."""
    properties = dataset.get_create_plist()
    if properties.get_layout() != h5py.h5d.VIRTUAL:
        return
    for k in range(properties.get_virtual_count()):
        yield (
            os.fsdecode(raw(properties.get_virtual_filename(k))),
            os.fsdecode(raw(properties.get_virtual_dsetname(k))),
            properties.get_virtual_vspace(k),
            properties.get_virtual_srcspace(k),
        )


def check_dataset(dataset: h5py.h5d.DatasetID) -> None:
    """Refuse a dataset whose numbers lie in another folder, or that is its own source.

    What such a name leads to would end in the result, and be read with the rights of whoever opened the scan.

    Raises:
        UserError: a source lies outside of the file's folder or is no regular file, it is in external storage, or HDF5 would
            run until its stack ends, or without an end.
    """
    key = (state_of(_file_of(dataset)), h5py.h5o.get_info(dataset).addr)
    if key in _safe and all(same(state) for state in _safe[key]):
        return
    walk = _Walk()
    walk.parts(dataset, [])
    remember(_safe, key, list(walk.states.values()))


class _Walk:
    """Through the sources of a dataset, at any depth.

    Attributes:
        states: of the files on the way.
        counts: how many parts a dataset has, with those of its sources: each is looked at once.
    """

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.counts: dict[tuple[str, int], int] = {}

    def parts(self, dataset: h5py.h5d.DatasetID, above: list[tuple[str, int]]) -> int:
        """How many parts HDF5 puts together for a dataset; `above`, what it is a source of."""
        file = _file_of(dataset)
        name = shown(h5py.h5i.get_name(dataset) or b"")
        properties = dataset.get_create_plist()
        if properties.get_external_count():
            outside = shown(properties.get_external(0)[0])
            raise UserError(
                f"{file}: dataset '{name}' keeps its numbers in another file ('{outside}', external storage), which is never "
                "read; write them into this file (h5repack does)"
            )
        here = (str(file.resolve()), h5py.h5o.get_info(dataset).addr)
        if here in above or len(above) > _DEEP:
            how = "is its own source" if here in above else f"has sources more than {_DEEP} levels deep"
            raise UserError(f"{file}: the virtual dataset '{name}' {how}; write it again")
        if here not in self.counts:
            sources = Counter((f, d) for f, d, *_ in sources_of(dataset))
            self.counts[here] = 1 + sum(
                times * self._source(file, name, *source, [*above, here]) for source, times in sources.items()
            )
        if self.counts[here] > _PARTS:
            raise UserError(
                f"{file}: the virtual dataset '{name}' is put together from {self.counts[here]} parts, more than {_PARTS}; "
                "write its numbers into one dataset (h5repack does)"
            )
        return self.counts[here]

    def _source(self, file: Path, name: str, file_name: str, dataset_name: str, above: list[tuple[str, int]]) -> int:
        place = find(file_name, file, SOURCE, f"dataset '{name}' is assembled from")
        if place is None or not h5py.is_hdf5(place):
            return 1
        self.states[str(place)] = state_of(place)
        with h5py.File(place, "r") as other:
            _check_path(other.id, dataset_name)
            try:
                inner = h5py.h5d.open(other.id, os.fsencode(dataset_name))
            except (KeyError, RuntimeError, OSError, ValueError):
                return 1  # It cannot be read either, and says so where it is.
            return self.parts(inner, above)
