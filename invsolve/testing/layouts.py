"""Conformance of a layout: it knows its own files, reads them lazily and repeatably, and says in one line what is broken."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from invsolve.contracts.layout import Layout, Make
from invsolve.contracts.measurement import Images, Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError
from invsolve.testing.log import Log
from invsolve.testing.report import Report

_HDF5 = b"\x89HDF\r\n\x1a\n"


def check_layout(layout: Layout, make: Make, example: Callable[[Path], Path] | None = None) -> Report:
    """Check that a layout reads its own files as it should, and broken ones not at all.

    Args:
        layout: an instance, with options that suit the example.
        make: `invsolve.make`.
        example: writes a small file (or folder) into a folder and returns its path; default the class's `write_example`.

    Returns:
        Report: one line a property. `assert check_layout(layout, invsolve.make)` in a test shows them all when one fails.
    """
    report = Log(f"layout {layout.name or type(layout).__name__}")
    write = example or getattr(layout, "write_example", None)
    if write is None:
        remedy = "give the class a class method write_example(folder) that writes a small file and returns its path"
        report.holds("has an example", False, remedy)
        return report
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("first", "second"):
            (folder / part).mkdir()
        path, second = write(folder / "first"), write(folder / "second")
        report.attempt("recognises", lambda: _recognises(report, layout, path, folder))
        before = len(report.findings)
        report.attempt("opens", lambda: _opens(report, layout, path, make))
        if all(f.ok for f in report.findings[before:]):
            report.attempt("fingerprint", lambda: _fingerprint(report, layout, path, second, make))
            report.attempt("broken files", lambda: _broken(report, layout, second, make))
    return report


def _open(layout: Layout, path: Path, make: Make) -> Measurement | Images:
    """As a measurement; as images where the layout holds no other."""
    if type(layout).open is not Layout.open:
        try:
            return layout.open(path, make)
        except UserError:
            if type(layout).images is Layout.images:
                raise
    return layout.images(path)


def _rows(content: Measurement | Images) -> Any:
    return content.y if isinstance(content, Measurement) else content.x


def _is_hdf5(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:8] == _HDF5


def _knows(layout: Layout, path: Path) -> bool:
    if layout.opens(path):
        return True
    if not _is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return layout.recognises(file)


def _recognises(report: Log, layout: Layout, path: Path, folder: Path) -> None:
    kind = type(layout)
    asked = kind.recognises.__func__ is Layout.recognises.__func__ and kind.opens.__func__ is Layout.opens.__func__  # type: ignore[attr-defined]
    if asked:
        report.holds("must be asked for by name", True, note="neither recognises nor opens is written")
        return
    report.holds(
        "recognises its example", _knows(layout, path), "neither recognises(file) nor opens(path) says yes to it"
    )
    empty, text = folder / "empty.h5", folder / "notes.txt"
    h5py.File(empty, "w").close()
    text.write_text("nothing of the kind")
    for other in (empty, text):
        remedy = f"says yes to {other.name}, which holds nothing of the kind: look for what only your files have"
        report.holds(f"leaves {other.name} to others", not _knows(layout, other), remedy)


def _opens(report: Log, layout: Layout, path: Path, make: Make) -> None:
    content = _open(layout, path, make)
    rows = _rows(content)
    remedy = (
        "the rows are a tensor, so the whole file is in memory at once; invsolve.datasets.hdf5.LazyRows reads slices"
    )
    report.holds("rows are read when sliced", not isinstance(rows, Tensor), remedy)
    count = len(rows)
    first = rows[0:1]
    shaped = isinstance(first, Tensor) and len(first) == 1 and count > 0
    report.holds(
        "a slice is a tensor with its items first", shaped, f"rows[0:1] of {count} items is {type(first).__name__}"
    )
    if not shaped:
        return
    report.holds("single precision", first.dtype in (torch.float32, torch.complex64), f"rows[0:1] is {first.dtype}")
    last = rows[count - 1 : count]
    report.holds("slices agree", torch.equal(rows[0:count][count - 1 :], last), "rows[0:n] and rows[n-1:n] disagree")
    says = content.source and content.fingerprint
    report.holds("says where it is from", bool(says), "source= and fingerprint= must be set (hdf5.fingerprint(path))")
    if isinstance(content, Images):
        report.holds("channels", first.ndim >= 3, f"images are (items, channels, *spatial), these {tuple(first.shape)}")
        return
    operator = content.operator
    report.holds("has an operator", isinstance(operator, Operator), f"operator is {type(operator).__name__}")
    noise = content.noise
    known = isinstance(noise, Noise) or (noise is None and any("noise" in line for line in content.missing))
    remedy = "noise must be an invsolve.Noise; or None, and a line in missing= that says how to give it"
    report.holds("noise is known, or said to be missing", known, remedy)
    if operator.image_shape is not None:
        predicted = operator(operator.blank(1, tuple(operator.image_shape), torch.float32))
        remedy = f"the operator measures {tuple(predicted.shape[1:])}, the file holds {tuple(first.shape[1:])}"
        report.holds("operator and data agree", predicted.shape == first.shape, remedy)
    if content.truth is not None:
        report.holds("truth for each item", len(content.truth) == count, f"{len(content.truth)} truths, {count} items")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _fingerprint(report: Log, layout: Layout, path: Path, changed: Path, make: Make) -> None:
    mark = _open(layout, path, make).fingerprint
    report.holds("the same file, the same fingerprint", _open(layout, path, make).fingerprint == mark, "it changes")
    for file in _files(changed):
        if _is_hdf5(file):
            with h5py.File(file, "r+") as content:
                content.attrs["changed_by_the_check"] = 1
        else:
            # The last byte is a value in every array format, and padding at worst.
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
    try:
        different = _open(layout, changed, make).fingerprint != mark
    except UserError:
        different = True
    remedy = "another file has the same fingerprint, so a run would be resumed on other data: hash the content"
    report.holds("another file, another fingerprint", different, remedy)


def _broken(report: Log, layout: Layout, path: Path, make: Make) -> None:
    whole = {file: file.read_bytes() for file in _files(path)}
    for what, content in (
        ("empty", b""),
        ("truncated", None),
        ("overwritten", b"not what it was\n" * 8),
    ):
        # All files of a folder: one alone may be a stranger's that lies there.
        for file, data in whole.items():
            file.write_bytes(data[: len(data) // 2] if content is None else content)
        _refused(report, f"{what} file is one line", layout, path, make)
    for file, data in whole.items():
        file.write_bytes(data)
    _refused(report, "missing file is one line", layout, path.with_name(f"no_{path.name}"), make)
    if not _is_hdf5(path):
        return
    file = path
    with h5py.File(file, "r") as content_:
        names: list[str] = []
        content_.visititems(lambda name, thing: names.append(name) if isinstance(thing, h5py.Dataset) else None)
    for name in names[:32]:
        with h5py.File(file, "r+") as content_:
            del content_[name]
        _refused(report, f"file without {name!r} is read, or one line", layout, path, make, may_open=True)
        file.write_bytes(whole[path])


def _refused(report: Log, name: str, layout: Layout, path: Path, make: Make, may_open: bool = False) -> None:
    try:
        rows = _rows(_open(layout, path, make))
        rows[0 : len(rows)]
    except UserError as error:
        text = str(error)
        # A folder's file may be named instead.
        good = "\n" not in text and (path.name in text or any(f.name in text for f in _files(path)))
        report.holds(name, good, f"must be one line that names the file, got {text.splitlines()[0]!r}")
    except Exception as error:
        remedy = f"{type(error).__name__} instead of UserError: {' '.join(str(error).split())[:120]}"
        report.holds(name, False, f"{remedy}; read with invsolve.datasets.hdf5, which says what is broken")
    else:
        report.holds(name, may_open, "it was read as if nothing were wrong")
