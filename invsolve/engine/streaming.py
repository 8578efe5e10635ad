"""Reading ahead and writing behind: one thread each, so that files cost next to no time and memory is bounded."""

from __future__ import annotations

import queue
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor

#: Bytes of rows that are held in advance; half of that is read at once. Large enough that a chunk that spans items is
#: seldom read twice, small beside a network.
AHEAD = 32 * 2**20
#: The reader looks through what is still to come after idling for so many times what that takes: a fifth of its time at
#: most, and none where the computing waits for it.
_IDLE = 4
#: Seconds between two looks at whether the run was asked to stop, while waiting for a thread.
_TICK = 0.1


class ReadAhead:
    """Reads items, in order, before they are asked for.

    When it has read enough in advance it does not idle but looks through the items still to come, and drops what it
    read: so a bad value at the end of a volume stops the run early, and the search takes time only when there is some.
    Where all items fit into memory, nothing is handed out before all were read.

    Args:
        read: rows start..stop as a tensor; raises when they are bad.
        items: which, ascending.
        first: items of the first batch; the first read is no larger.
        limit: bytes held in advance, beyond what is asked for; default `AHEAD`.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], items: Sequence[int], first: int, limit: int | None = None
    ) -> None:
        self._read, self._items, self._limit = read, items, AHEAD if limit is None else limit
        self._slab, self._bytes, self._took = max(first, 1), 0, 0.0
        self._position = self._looked = 0
        self._wanted = 0
        self._rows: dict[int, Tensor] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="invsolve-read", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def take(self, items: Sequence[int], poll: Callable[[], None] = lambda: None) -> list[Tensor]:
        """Rows of these items, in ascending order; forgets all before the first of them.

        Args:
            items: ascending; best none before one that was taken earlier.
            poll: called now and then while waiting; may raise.

        Raises:
            UserError, OSError: whatever reading raised, for these items or for later ones.
        """
        with self._changed:
            for old in [item for item in self._rows if item < items[0]]:
                del self._rows[old]
            self._wanted = items[-1]
            self._changed.notify_all()
            while self._error is None and not (self._settled() and not any(self._coming(item) for item in items)):
                self._changed.wait(_TICK)
                poll()
            if self._error is not None:
                raise self._error
            held = {item: self._rows[item] for item in items if item in self._rows}
        # What was forgotten, or never announced, is read again: slower, and right.
        return [held[item] if item in held else self._read(item, item + 1)[0] for item in items]

    def _coming(self, item: int) -> bool:
        place = bisect_left(self._items, item, self._position)
        return place < len(self._items) and self._items[place] == item

    def _settled(self) -> bool:
        """Whether handing out may begin: at once, unless the rest is small enough to be looked through before."""
        return self._position == len(self._items) or (bool(self._bytes) and not self._small())

    def _small(self) -> bool:
        return self._bytes * len(self._items) <= self._limit

    def _has_room(self) -> bool:
        if self._position == len(self._items):
            return False
        if self._items[self._position] <= self._wanted or self._small():
            return True
        return (len(self._rows) + self._slab) * self._bytes <= self._limit

    def _needed(self) -> bool:
        return self._closed or self._has_room()

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    if self._closed:
                        return
                    keep = self._has_room()
                    begin = self._position if keep else max(self._looked, self._position)
                    if begin == len(self._items):
                        if self._position == len(self._items):
                            return
                        self._changed.wait()
                        continue
                    if not keep and self._changed.wait_for(self._needed, timeout=_IDLE * self._took):
                        continue
                # Reading goes on outside the lock; only this thread moves the positions.
                start, stop = self._next_slab(begin)
                began = time.perf_counter()
                rows = self._read(start, stop)
                self._took = time.perf_counter() - began
                with self._changed:
                    end = begin + stop - start
                    self._looked = max(self._looked, end)
                    if keep:
                        # Views: copies one by one would leave the heap full of holes.
                        self._rows |= {item: rows[item - start] for item in range(start, stop)}
                        self._position = end
                        self._bytes = max(rows[0].nbytes, 1)
                        self._slab = max(self._limit // 2 // self._bytes, 1)
                    del rows
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_slab(self, begin: int) -> tuple[int, int]:
        """The longest run of neighbouring items from a position on, at most a slab."""
        start, count = self._items[begin], 1
        while count < self._slab and begin + count < len(self._items) and self._items[begin + count] == start + count:
            count += 1
        return start, start + count


class WriteBehind:
    """Calls `write` in another thread, in order, with a bounded number of calls waiting.

    Leaving the block waits for what was handed over, also after an exception, so that what is finished is kept; after
    a second Ctrl-C (KeyboardInterrupt) only for the one being written.

    Args:
        write: called with whatever `put` is given.
        depth: how many calls may wait; `put` blocks beyond.
    """

    def __init__(self, write: Callable[..., None], depth: int) -> None:
        self._write = write
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(max(depth, 1))
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._work, name="invsolve-write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dropping = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, *work: Any) -> None:
        """Hand over one call.

        Raises:
            UserError: an earlier call failed; it, and those after it, were not carried out.
        """
        if self._error is not None:
            raise self._error
        self._queue.put(work)

    def drain(self) -> None:
        """Wait until all that was handed over is carried out.

        Raises:
            UserError: a call failed.
        """
        self._queue.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        # After an error it goes on emptying the queue, so that nobody waits for room in it.
        while (work := self._queue.get()) is not None:
            if self._error is None and not self._dropping:
                try:
                    self._write(*work)
                except BaseException as error:
                    self._error = error
            self._queue.task_done()
