"""PNG and JPEG files as arrays: grey (rows, columns), or colour (rows, columns, channels), as they are stored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.datasets.extras import head
from invsolve.datasets.hdf5.file_names import natural, said_gaps
from invsolve.errors import UserError

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SUFFIXES = (".png", ".jpg", ".jpeg")
#: Pillow's mode -> channels, and the type of the numbers.
_MODES = {
    "1": (1, "u1"),
    "L": (1, "u1"),
    "LA": (1, "u1"),
    "P": (3, "u1"),
    "PA": (3, "u1"),
    "RGB": (3, "u1"),
    "RGBA": (3, "u1"),
    "I;16": (1, "u2"),
    "I;16B": (1, "u2"),
    "I;16L": (1, "u2"),
    "I": (1, "i4"),
    "F": (1, "f4"),
}


def is_picture(path: Path) -> bool:
    return head(path, 8).startswith((_PNG, _JPEG))


def picture_folder(path: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, in the order of the numbers in their names; none when it is no folder."""
    if not path.is_dir():
        return []
    files = [p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(files, key=natural)


class Pictures:
    """One picture, or several of one size as items; decoded when read.

    Args:
        files: the pictures.

    Raises:
        UserError: damaged, of a kind whose numbers Pillow would change, or pictures that do not agree.
    """

    white: float | None = None

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        notes: list[str] = []
        size, channels, dtype = _look(files[0], notes)
        for file in files[1:]:
            other = _look(file, [])
            if other != (size, channels, dtype):
                raise UserError(
                    f"{file}: is {_said(*other)}, but {files[0].name} {_said(size, channels, dtype)}; keep pictures of one "
                    "size and kind in a folder (crop or convert them)"
                )
        self.dtype = np.dtype(dtype)
        plane = size if channels == 1 else (*size, channels)
        self.single = len(files) == 1
        self.shape: tuple[int, ...] = plane if self.single else (len(files), *plane)
        self.chunks: tuple[int, ...] | None = None if self.single else (1, *plane)
        self.axes = ",".join(
            [*([] if self.single else ["item"]), "row", "column", *(["channel"] if channels > 1 else [])]
        )
        self.notes = (*notes, *said_gaps(files)) if len(files) > 1 else tuple(notes)

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        if self.single:
            return _decoded(self.files[0])[selection]
        first = selection[0]
        if isinstance(first, int | np.integer):
            return _decoded(self.files[int(first)])[selection[1:]]
        return np.stack([_decoded(self.files[k])[selection[1:]] for k in range(*first.indices(self.shape[0]))])


def _open(file: Path) -> Any:
    from PIL import Image

    with warnings.catch_warnings():
        # A large picture is no attack here: Pillow still refuses those beyond twice its limit.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=("PNG", "JPEG", "MPO"))


def _look(file: Path, notes: list[str]) -> tuple[tuple[int, int], int, str]:
    start = head(file, 32)
    if not start:
        raise UserError(f"{file}: is empty (0 bytes); copy or write it again")
    # Colour, or transparency, of 16 bits: Pillow would cut it down to 8 without a word.
    if start.startswith(_PNG) and start[24:25] == b"\x10" and start[25] in (2, 4, 6):
        raise UserError(f"{file}: is a PNG of several channels of 16 bits, which cannot be read whole; save it as TIFF")
    try:
        with _open(file) as image:
            columns, rows = image.size
            turned = image.getexif().get(0x0112, 1)
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            grey_palette = mode in ("P", "PA") and _grey(image)
            transparent = "transparency" in image.info or mode in ("LA", "PA", "RGBA")
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise UserError(
            f"{file}: cannot be read as PNG or JPEG ({type(error).__name__}: {' '.join(str(error).split())}); write it again"
        ) from None
    if mode not in _MODES:
        raise UserError(f"{file}: has colours of kind {mode}, expected grey or RGB; convert it first")
    channels, dtype = _MODES[mode]
    if grey_palette:
        channels = 1
    if turned in (5, 6, 7, 8):
        rows, columns = columns, rows
    if turned != 1:
        notes.append("turned upright, as the camera's orientation tag says")
    if frames > 1 and start.startswith(_PNG):
        raise UserError(f"{file}: is an animation of {frames} pictures; save them as a folder of pictures")
    if frames > 1:
        notes.append(f"the first of {frames} pictures in the file is read")
    if transparent:
        notes.append("opacity is left out")
    if start.startswith(_JPEG) or dtype == "u1":
        notes.append("values as stored, 0 to 1" if mode == "1" else "values as stored, 0 to 255, not linear in light")
    return (rows, columns), channels, dtype


def _grey(image: Any) -> bool:
    """Whether every colour of its palette is grey."""
    colours = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _decoded(file: Path) -> np.ndarray:
    from PIL import ImageOps

    try:
        with _open(file) as opened:
            palette = opened.mode in ("P", "PA")
            grey = palette and _grey(opened)
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                opacity = np.asarray(image.convert("RGBA"))[..., 3]
                if opacity.min() < 255:
                    raise UserError(f"{file}: is partly transparent; put it on a background first (flatten it)")
            if palette:
                image = image.convert("RGB")
            values = np.asarray(image)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); write it again"
        ) from None
    if image.mode == "LA" or (palette and grey):
        return values[..., 0]
    return values[..., :3] if values.ndim == 3 else values.astype(np.uint8) if values.dtype == bool else values


def _said(size: tuple[int, int], channels: int, dtype: str) -> str:
    return f"{size[0]} x {size[1]} {'colour' if channels > 1 else 'grey'} {np.dtype(dtype).name}"
