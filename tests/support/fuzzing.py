"""Harm to files, drawn at random, and the walls that a command which reads them must not break."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np

#: Text as only somebody wants it who means harm: moves the cursor, ends the line, fills the screen.
HOSTILE = "\x1b[2J\x07evil\r\n</script>" + "A" * 60_000
_ATTRIBUTES: list[Any] = [
    *(3, -1, 2**62, float("nan"), float("inf"), 1e300, 1 + 2j, True, "", "x", HOSTILE[:60_000], b"\xff\xfe\x1b[31m"),
    *(np.arange(5), np.zeros(0), np.zeros((2, 2)), h5py.Empty("f4"), ["a", "b"]),
]
_ODD_NAMES: list[str | bytes] = [HOSTILE.replace("/", ""), "a\x1b[31mb", b"caf\xe9", "..", " ", "-o", "%b", "x" * 300]
_NUMBERS = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e300, 1e38, 2.0**31]
_SHAPES: list[Callable[[np.ndarray], np.ndarray]] = [
    *(np.ravel, lambda v: v[None], lambda v: v[..., None], np.transpose, lambda v: v[:1], lambda v: v[:0]),
    *(lambda v: v[..., :1], lambda v: v[..., :0], lambda v: v.ravel()[0], lambda v: np.concatenate([v, v])),
]
_HUGE = [(2**40,), (2**20, 2**20, 2**20), (10**9, 2, 2), (2**62, 2)]


def _types(values: np.ndarray, rng: random.Random) -> Any:
    kinds: list[Any] = ["i1", "?", "c8", "f2", "u8", "V4", "S3"]
    pair = np.dtype([("r", "f4"), ("i", "f4")])
    with suppress(TypeError, ValueError), np.errstate(all="ignore"):
        match rng.randrange(4):
            case 0:
                return np.full(values.shape, b"word")
            case 1:
                return np.zeros(values.shape, pair if rng.random() < 0.5 else [("real", "f4"), ("imag", "f4")])
            case 2:
                return h5py.Empty("f4")
        return values.real.astype(rng.choice(kinds))
    return np.zeros(3)


def _put(file: h5py.File, name: str, value: Any) -> None:
    """Replace a dataset and keep its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    try:
        file[name] = value
    except (TypeError, ValueError, OSError):
        file[name] = np.zeros(2)
    for key, given in attributes.items():
        with suppress(TypeError, OSError, RuntimeError):
            file[name].attrs[key] = given


def _values(file: h5py.File, name: str, rng: random.Random) -> None:
    values = np.array(file[name][()], dtype="c16" if file[name].dtype.kind == "c" else "f8")
    flat = values.reshape(-1)
    many = rng.choice([1, len(flat) // 2, len(flat)])
    flat[:many] = rng.choice(_NUMBERS)
    _put(file, name, values)


def _assemble(file: h5py.File, name: str, source: str, inside: str) -> None:
    shape, kind = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(source, inside, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _claim(file: h5py.File, name: str, rng: random.Random) -> None:
    shape, kind = rng.choice(_HUGE), file[name].dtype
    del file[name]
    chunks = tuple(min(n, 64) for n in shape)
    huge = file.create_dataset(name, shape, kind if kind.kind in "fiu" else "f4", chunks=chunks)
    if rng.random() < 0.5:
        with suppress(OSError):
            huge[(0,) * len(shape)] = 1


def harm_hdf5(path: Path, rng: random.Random, outside: Path) -> str:
    """Change one object of an HDF5 file; returns what was done to which.

    Args:
        path: the file.
        rng: what is drawn from.
        outside: an HDF5 file in another folder, with a dataset x, that links and sources are made to lead to.
    """
    names: list[str] = []
    away = rng.choice([str(outside), os.path.relpath(outside, path.parent)])
    with h5py.File(path, "a") as file:
        file.visit(names.append)
        name = rng.choice(names)
        thing = file[name]
        numeric = isinstance(thing, h5py.Dataset) and thing.dtype.kind in "fiuc" and thing.shape not in ((), None)
        words = [
            "delete",
            "group",
            "soft link",
            "link away",
            "attribute",
            "attribute",
            "no attribute",
            "file attribute",
        ]
        if numeric and thing.size:
            words += ["type", "shape", "values"] * 2 + ["huge", "own source", "no source", "source away"]
        elif isinstance(thing, h5py.Dataset):
            words += ["text"]
        match rng.choice(words):
            case "delete":
                del file[name]
                return f"delete {name}"
            case "group":
                del file[name]
                file.create_group(name)
                return f"group {name}"
            case "soft link":
                del file[name]
                file[name] = h5py.SoftLink(f"/{rng.choice([*names, 'nothing'])}")
                return f"soft link {name}"
            case "link away":
                del file[name]
                file[name] = h5py.ExternalLink(rng.choice([away, "nothing.h5", path.name]), rng.choice(["/x", "/"]))
                return f"link {name}"
            case "attribute" | "file attribute" as what:
                owner = thing if what == "attribute" else file
                key = rng.choice([*owner.attrs, "units", "axes", "unit", "name", "NX_class", "MATLAB_class", "format"])
                with suppress(TypeError, ValueError, OSError, RuntimeError):
                    owner.attrs[key] = rng.choice(_ATTRIBUTES)
                return f"{what} {key} of {name}"
            case "no attribute":
                for key in list(thing.attrs)[:1]:
                    del thing.attrs[key]
                return f"no attribute of {name}"
            case "type":
                _put(file, name, _types(thing[()], rng))
            case "shape":
                _put(file, name, rng.choice(_SHAPES)(thing[()]))
            case "values":
                _values(file, name, rng)
            case "huge":
                _claim(file, name, rng)
            case "own source":
                _assemble(file, name, ".", name)
            case "no source":
                _assemble(file, name, "nothing.h5", "x")
            case "source away":
                _assemble(file, name, away, "x")
            case "text":
                given = [b"", b"\xff\xfe", HOSTILE.encode(), b"<" * 5000, b"{" * 100_000, b"[" * 100_000, b"3"]
                _put(file, name, rng.choice(given))
    return f"value of {name}"


def harmless_hdf5(path: Path, rng: random.Random, outside: Path) -> str:
    """Change an HDF5 file in a way that leaves what it says as it is; returns what was done."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        counts = [
            n for n in names if isinstance(file[n], h5py.Dataset) and file[n].dtype.kind in "iuf" and file[n].shape
        ]
        match rng.choice(["extra", "link away", "attribute", "wider", "swapped"]):
            case "wider" if counts:
                name = rng.choice(counts)
                _put(file, name, file[name][()].astype("f8" if file[name].dtype.kind == "f" else "i8"))
                return f"wider {name}"
            case "swapped" if counts:
                name = rng.choice(counts)
                _put(file, name, file[name][()].astype(file[name].dtype.newbyteorder(">")))
                return f"swapped {name}"
            case "link away":
                file["not asked for"] = h5py.ExternalLink(str(outside), "/x")
                return "link away"
            case "attribute":
                # Attributes of groups are parameters in some files.
                file[rng.choice(counts or names)].attrs["remark"] = rng.choice(
                    [3, 1e300, "text", HOSTILE[:60_000], np.zeros(3)]
                )
                return "attribute"
        file.create_dataset(rng.choice(_ODD_NAMES), data=np.zeros(3))
    return "extra dataset"


def harm_bytes(path: Path, rng: random.Random) -> str:
    """Change some bytes of a file, most often near its beginning, where it says what it is; returns what was done."""
    data = bytearray(path.read_bytes())
    top = len(data) if rng.random() < 0.5 else min(len(data), 2500)
    at = rng.randrange(max(top, 1))
    what = rng.choice(["flip", "flip", "cut", "zeros", "ones", "insert", "noise", "text"])
    match what:
        case "flip":
            for _ in range(rng.choice([1, 1, 3, 10])):
                data[rng.randrange(max(top, 1)) % len(data)] ^= 1 << rng.randrange(8)
        case "cut":
            del data[at:]
        case "insert":
            data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
        case "text":
            data[at:at] = rng.choice(
                [b"-1", b"9" * 400, b"NaN", b"null", b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe", b"\0"]
            )
        case _:
            count = rng.choice([4, 8, 16, 64])
            filling = {"zeros": bytes(count), "ones": b"\xff" * count, "noise": rng.randbytes(count)}[what]
            data[at : at + count] = filling
    path.write_bytes(bytes(data))
    return f"{what} at {at}"


class Watched:
    """Notes what is opened or made in a folder, by whichever library (inotify); nothing where the system has none."""

    def __init__(self, folder: Path) -> None:
        self._handle = -1
        if sys.platform == "linux":
            library = ctypes.CDLL(None)
            self._handle = library.inotify_init1(os.O_NONBLOCK)
            opened, changed, made, removed = 0x20, 0x2, 0x100, 0x200
            library.inotify_add_watch(self._handle, os.fsencode(folder), opened | changed | made | removed)

    def names(self) -> list[str]:
        """Files that were touched since the last call."""
        touched = []
        with suppress(BlockingIOError):
            while self._handle >= 0:
                data, at = os.read(self._handle, 65536), 0
                while at < len(data):
                    _, _, _, length = struct.unpack_from("iIII", data, at)
                    touched.append(os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0")))
                    at += 16 + length
        return [name for name in touched if name]

    def close(self) -> None:
        """Watch no more."""
        if self._handle >= 0:
            os.close(self._handle)


@contextmanager
def walls(seconds: int, more_bytes: int) -> Iterator[None]:
    """A block that may compute so long, wait thirty times as long, and take so much more memory, and no more.

    Raises:
        TimeoutError: it took longer. Out of memory is MemoryError, or torch's own error, where it happens.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    # On a busy machine time passes that is not the block's own.
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as stream:
            size = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more_bytes, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 30 * seconds)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
