"""Reading detector rows out of what cameras write frame by frame: each stored chunk is read, and decompressed, once."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Bytes of rows that are held in memory; what is larger goes through a file in the folder for temporary files.
_MEMORY = 512 * 2**20
# Bytes that are read at once.
_TILE = 64 * 2**20

Read = Callable[[tuple[Any, ...]], np.ndarray]


def gather(
    read: Read,
    shape: Sequence[int],
    chunks: Sequence[int] | None,
    order: tuple[int, int, int],
    rows: Sequence[int],
    frames: Sequence[int],
    itemsize: int = 8,
) -> np.ndarray:
    """Some rows of some frames, (rows, frames, columns); no chunk is touched twice.

    Args:
        read: part of the stored array, from a tuple of slices.
        shape, chunks: of the stored array; chunks None where it lies in one piece.
        order: its axes that are frame, row and column.
        rows, frames: which, rising.
        itemsize: bytes per number.
    """
    frame, row, column = order
    deep, high = (chunks[frame], chunks[row]) if chunks else (1, 1)
    out: np.ndarray | None = None
    width = shape[column] * itemsize
    row_index, frame_index = np.asarray(rows), np.asarray(frames)
    # In one piece, rows lie apart and frames that are skipped cost little; chunks that are not wanted are not read.
    for group in _groups(row_index, high, max(1, _TILE // max(width * deep, 1)), 1):
        low, top = int(row_index[group[0]]), int(row_index[group[-1]]) + 1
        for few in _groups(frame_index, deep, max(deep, _TILE // max(width * (top - low), 1)), 1 if chunks else 8):
            first, last = int(frame_index[few[0]]), int(frame_index[few[-1]]) + 1
            selection = [slice(None)] * len(shape)
            selection[frame], selection[row] = slice(first, last), slice(low, top)
            part = read(tuple(selection)).transpose(row, frame, column)
            if out is None:
                out = np.empty((len(row_index), len(frame_index), shape[column]), part.dtype)
            out[group[0] : group[-1] + 1, few[0] : few[-1] + 1] = part[row_index[group] - low][
                :, frame_index[few] - first
            ]
    assert out is not None
    return out


def _groups(index: np.ndarray, chunk: int, limit: int, near: int) -> list[np.ndarray]:
    """Positions in `index` that are read together: all of one chunk, and further ones while the group is short.

    Args:
        index: rising.
        chunk: length of a chunk.
        limit: how long a group may become by taking in further chunks.
        near: chunks between two that are read together at most.
    """
    groups: list[list[int]] = []
    for position, value in enumerate(index.tolist()):
        if groups:
            first, last = int(index[groups[-1][0]]), int(index[groups[-1][-1]])
            apart = value // chunk - last // chunk
            if apart == 0 or (apart <= near and value - first < limit):
                groups[-1].append(position)
                continue
        groups.append([position])
    return [np.asarray(g) for g in groups]


class RowCache:
    """Rows start..stop of the picked frames, served in slabs from few passes over what is stored.

    What lies row by row, or in one piece, is read as it is asked for. Else all rows are read in one pass, in the order of
    the chunks: into memory up to 512 MB, beyond that into a nameless temporary file, which goes with the process. Where
    the disk has no room for it, as many rows as fit into the memory are read at a time. Picklable, without what it holds.

    Args:
        load: (rows, frames) -> (rows, frames, columns).
        rows: [start, stop) that will be asked for.
        frames: which frames, rising.
        tall: rows a chunk spans; 1 or less where a row is read without its neighbours.
        row_bytes: of one row of all picked frames.
        whole: whether a chunk spans all frames, so that slabs of `tall` rows are read without a detour.
        chunk_of: number of the chunk that each frame lies in; default one each.
    """

    def __init__(
        self,
        load: Callable[[Sequence[int], Sequence[int]], np.ndarray],
        rows: tuple[int, int],
        frames: Sequence[int],
        tall: int,
        row_bytes: int,
        whole: bool = False,
        chunk_of: Sequence[int] | None = None,
    ) -> None:
        self.load, self.rows, self.frames, self.tall = load, rows, list(frames), tall
        self.row_bytes, self.whole = row_bytes, whole
        self.chunk_of = list(range(len(self.frames)) if chunk_of is None else chunk_of)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._held: np.ndarray | None = None
        self._first = 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def keep(self, row: int, values: np.ndarray) -> None:
        """Remember one row (1, frames, columns) that was read on the way, for who asks for it alone."""
        self._held, self._first = values, row

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, (rows, frames, columns), as stored."""
        if self.tall <= 1:
            return self.load(range(start, stop), self.frames)
        with self._lock:
            held = self._held
            if held is None or not self._first <= start <= stop <= self._first + len(held):
                self._held = None  # Before the next is made: there is room for one.
                self._fill(start, stop)
                held = self._held
            assert held is not None
            return np.array(held[start - self._first : stop - self._first])

    def _fill(self, start: int, stop: int) -> None:
        first, last = self.rows
        total = (last - first) * self.row_bytes
        if total <= _MEMORY:
            self._held, self._first = self.load(range(first, last), self.frames), first
        elif not self.whole and shutil.disk_usage(tempfile.gettempdir()).free > 1.1 * total + 2**30:
            self._held, self._first = self._scratch(), first
        else:
            many = max(stop - start, _MEMORY // max(self.row_bytes, 1) // self.tall * self.tall)
            begin = max(first, start // self.tall * self.tall)
            end = min(last, max(stop, begin + many))
            self._held, self._first = self.load(range(begin, end), self.frames), begin

    def _scratch(self) -> np.ndarray:
        """All rows in a temporary file, written in stretches of frames as long as the memory allows."""
        first, last = self.rows
        per_frame = (last - first) * self.row_bytes // len(self.frames)
        many = max(1, _MEMORY // 2 // max(per_frame, 1))
        scratch: np.ndarray | None = None
        begin = 0
        while begin < len(self.frames):
            end = min(begin + many, len(self.frames))
            # A chunk is not torn, for it would be read twice.
            while begin < end < len(self.frames) and self.chunk_of[end] == self.chunk_of[end - 1]:
                end -= 1
            if end == begin:
                end += 1
                while end < len(self.frames) and self.chunk_of[end] == self.chunk_of[begin]:
                    end += 1
            part = self.load(range(first, last), self.frames[begin:end])
            if scratch is None:
                # It has no name: nothing is left behind, however the process ends.
                with tempfile.TemporaryFile(prefix="invsolve-rows-") as file:
                    shape = (len(part), len(self.frames), part.shape[2])
                    scratch = np.memmap(file, part.dtype, "w+", shape=shape)
            scratch[:, begin:end] = part
            begin = end
        assert scratch is not None
        return scratch
