"""The line protocol by which an instrument answers: one JSON object a line, over pipes or a local socket."""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.acquisition.session import Session
from invsolve.errors import UserError

#: What the first line says that the protocol is.
FORMAT = "invsolve-acquire/1"
#: So often in a row an answer may be refused before the session stops.
_TRIES = 3
#: Characters that a number takes in JSON, at most, and those of everything else in a line.
_PER_NUMBER, _REST = 32, 1_000_000
#: Lines that are kept until they are asked for.
_AHEAD = 16


class Channel:
    """Lines to and from an instrument; reading waits in a thread, so that an answer that never comes can be given up.

    Args:
        read: waits for some bytes, at most so many, and returns them; none at the end. A buffered stream would not do: it cannot
            be closed while a thread waits in it.
        write: writes bytes, all of them.
        timeout: seconds to wait for an answer; None waits for ever.
        longest: bytes of a line, at most.
    """

    def __init__(
        self, read: Callable[[int], bytes], write: Callable[[bytes], object], timeout: float | None, longest: int
    ) -> None:
        self._write, self._timeout, self._longest = write, timeout, longest
        # Who sends more than is asked for waits: lines that nobody reads take no memory.
        self._lines: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        threading.Thread(target=self._collect, args=(read,), daemon=True).start()

    def _collect(self, read: Callable[[int], bytes]) -> None:
        parts: list[bytes] = []
        length = 0
        with suppress(OSError):
            while more := read(65_536):
                *whole, rest = more.split(b"\n")
                for line in whole:
                    self._lines.put(b"".join([*parts, line]))
                    parts, length = [], 0
                parts.append(rest)
                length += len(rest)
                if length > self._longest:
                    self._lines.put(b"".join(parts))
                    return
        self._lines.put(None)

    def send(self, **message: Any) -> None:
        """Write one line.

        Raises:
            Closed: the instrument is gone.
        """
        try:
            self._write(json.dumps(message).encode() + b"\n")
        except OSError:
            raise Closed("the instrument closed the connection") from None

    def answer(self) -> dict[str, Any]:
        """Read one line.

        Raises:
            Closed: the instrument is gone, or did not answer in time.
            UserError: the line is no JSON object, or too long.
        """
        try:
            line = self._lines.get(timeout=self._timeout)
        except queue.Empty:
            raise Closed(f"the instrument did not answer within {self._timeout:g} s") from None
        if line is None:
            raise Closed("the instrument closed the connection")
        if len(line) > self._longest:
            raise Closed(f"the instrument sent a line of more than {self._longest} bytes")
        try:
            message = json.loads(line, parse_constant=float)
        except (ValueError, RecursionError):
            raise UserError("the line is no JSON") from None
        if not isinstance(message, dict):
            raise UserError('the line is no JSON object; write {"groups": [...], "values": [...]}')
        return message


class Closed(UserError):
    """The instrument is gone; what it told is kept."""


def serve(session: Session, channel: Channel, say: Callable[[str], None] = lambda line: None) -> None:
    """Let an instrument measure what the session asks for, until nothing more is asked for.

    Sent: `{"format", "groups", "measurement_shape", "complex", "acquired"}` first, then `{"measure": [g, ...]}` for each round,
    `{"refused": "why"}` for an answer that is not taken (the same groups are asked for again), `{"done": true}` at the end.
    Expected: `{"groups": [g, ...], "values": [[number, ...], ...]}`, one row per group in the order of the measurement's entries;
    complex values as `"real"` and `"imag"` in place of `values`; or `{"error": "why"}`, which stops the session.

    Raises:
        UserError: the instrument is gone, said that it cannot go on, or gave three answers in a row that cannot be taken.
    """
    like = session.y
    channel.send(
        format=FORMAT,
        groups=session.operator.groups,
        measurement_shape=list(like.shape),
        complex=like.is_complex(),
        acquired=session.acquired,
    )
    while groups := session.ask():
        for attempt in range(_TRIES):
            channel.send(measure=groups)
            try:
                message = channel.answer()
                if "error" in message:
                    raise Closed(f"the instrument says: {str(message['error'])[:500]}")
                session.tell(message.get("groups", groups), _values(message))
            except Closed:
                raise
            except UserError as error:
                say(f"refused an answer: {error}")
                channel.send(refused=str(error))
                if attempt + 1 == _TRIES:
                    raise UserError(f"{_TRIES} answers in a row could not be taken; the last: {error}") from None
            else:
                break
    channel.send(done=True)


def longest_line(session: Session) -> int:
    """Bytes of a line that an instrument may send: a whole measurement fits."""
    like = session.y
    return like.numel() * (2 if like.is_complex() else 1) * _PER_NUMBER + _REST


def _values(message: dict[str, Any]) -> np.ndarray | list[np.ndarray]:
    if "values" in message:
        return _rows(message["values"], "values")
    if "real" in message and "imag" in message:
        real, imag = (_rows(message[part], part) for part in ("real", "imag"))
        if _shapes(real) != _shapes(imag):
            raise UserError(f"real and imag: have shapes {_shapes(real)} and {_shapes(imag)}; give two of one shape")
        if isinstance(real, np.ndarray) and isinstance(imag, np.ndarray):
            return real + 1j * imag
        return [a + 1j * b for a, b in zip(real, imag, strict=True)]
    raise UserError('the line has no values; write {"groups": [...], "values": [[...]]}, or "real" and "imag"')


def _rows(given: Any, what: str) -> np.ndarray | list[np.ndarray]:
    """Numbers as an array; where groups have different numbers of entries, a row of each."""
    if isinstance(given, list) and len({len(row) if isinstance(row, list) else -1 for row in given}) > 1:
        return [_numbers(row, what) for row in given]
    return _numbers(given, what)


def _shapes(given: np.ndarray | list[np.ndarray]) -> Any:
    return given.shape if isinstance(given, np.ndarray) else [row.shape for row in given]


def _numbers(given: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(given)
        # Words, true and false would become numbers as well; null is how JSON writes NaN.
        numbers = array.dtype.kind in "iuf" or (
            array.dtype.kind == "O" and all(v is None or type(v) in (int, float) for v in array.flat)
        )
        if array.ndim and numbers:
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{what}: no array of numbers, one row per group")


@contextmanager
def standard_streams(timeout: float | None, longest: int) -> Iterator[Channel]:
    """The instrument at the other end of standard input and output; what else is printed goes to standard error meanwhile."""
    kept = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)

    def write(line: bytes) -> None:
        while line:
            line = line[os.write(kept, line) :]

    try:
        yield Channel(lambda size: os.read(0, size), write, timeout, longest)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def local_socket(path: Path, timeout: float | None, longest: int) -> Iterator[Channel]:
    """The instrument at a local (Unix) socket that only its owner may open; the first that connects is taken.

    Raises:
        UserError: the path exists or cannot be made, or nobody connects in time.
    """
    _remove_abandoned(path)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists; remove it, or give another name for the socket")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # It gets its name once somebody listens: who sees it may connect. Linking replaces nothing.
    unnamed = path.with_name(f".{path.name[:40]}.{os.getpid()}")
    before = os.umask(0o177)
    try:
        server.bind(str(unnamed))
        server.listen(1)
        os.link(unnamed, path)
    except OSError as error:
        server.close()
        raise UserError(f"{path}: no socket can be made there ({error.strerror or error})") from None
    finally:
        os.umask(before)
        unnamed.unlink(missing_ok=True)
    try:
        server.settimeout(timeout)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            raise Closed(f"{path}: no instrument connected within {timeout:g} s") from None
        with connection:
            connection.settimeout(None)
            yield Channel(connection.recv, connection.sendall, timeout, longest)
            with suppress(OSError):
                # The instrument may be gone, having heard that all is done.
                connection.shutdown(socket.SHUT_RDWR)
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove a socket at which nobody listens: a kill left it."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, suppress(OSError):
        try:
            other.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
