"""Pictures as text for a page: rounded, predicted from their neighbours, deflated, in base64. `decode.js` undoes it."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from invsolve.errors import printable

#: Codes are 16 bits; 0 says that a value is not a number.
_LARGEST = 65534


def shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor; along an axis that is shorter than a block, or 1, of as many as there are."""
    if factor == 1:
        return picture
    blocks = [factor if size > 1 else 1 for size in picture.shape]
    pad = [(0, -size % block) for size, block in zip(picture.shape, blocks, strict=True)]
    padded = np.pad(picture, pad, mode="edge")
    rows, columns = (size // block for size, block in zip(padded.shape, blocks, strict=True))
    return padded.reshape(rows, blocks[0], columns, blocks[1]).mean((1, 3))


def encode(picture: np.ndarray, step: float) -> tuple[float, float, bytes]:
    """Round a picture (rows, columns) to multiples of a step, and compress it.

    The prediction is that of LOCO-I (Weinberger 2000, eq. 1): the median of the left neighbour, the one above, and the plane
    through both and the one between them. Residuals are folded to whole numbers >= 0 and stored as a plane of low bytes
    and, where one is above 255, a plane of high bytes.

    Returns:
        (low, step, bytes): a value is low + (code - 1) * step; the step is larger than asked for where 16 bits do not reach.
    """
    known = np.isfinite(picture)
    inside = picture[known].astype(np.float64)
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    step = max(step, (high - low) / (_LARGEST - 1)) or 1.0
    codes = np.zeros(picture.shape, np.int32)
    codes[known] = 1 + np.rint((inside - low) / step).astype(np.int32)
    # Neighbours outside the picture count as 0.
    framed = np.pad(codes, ((1, 0), (1, 0)))
    left, above, between = framed[1:, :-1], framed[:-1, 1:], framed[:-1, :-1]
    smaller, larger = np.minimum(left, above), np.maximum(left, above)
    predicted = np.clip(left + above - between, smaller, larger)
    difference = (codes - predicted).astype(np.int64)
    folded = np.where(difference >= 0, 2 * difference, -2 * difference - 1).astype(np.uint32).ravel()
    planes = [(folded >> shift & 255).astype(np.uint8).tobytes() for shift in (0, 8, 16)]
    used = 1 + int(folded.max(initial=0) > 255) + int(folded.max(initial=0) > 65535)
    return low, step, zlib.compress(b"".join(planes[:used]), 6)


def block(pictures: Mapping[str, tuple[np.ndarray, int, float]], more: Mapping[str, Any]) -> str:
    """One frame as the text of a data block: a line of JSON, then the compressed pictures in base64.

    Args:
        pictures: name -> (picture (rows, columns), how many pixels each way are averaged into one, step).
        more: further facts of the frame for the page, without NaN.
    """
    layers, data = [], []
    for name, (picture, factor, wanted) in pictures.items():
        small = shrink(picture, factor)
        low, step, packed = encode(small, wanted)
        layers.append([name, *small.shape, factor, low, step, len(packed)])
        data.append(packed)
    header = to_json({"layers": layers, **more})
    return f"{header}\n{base64.b64encode(b''.join(data)).decode()}"


def to_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can close one or open a comment; NaN becomes null.

    Texts are escaped and cut as for a terminal.
    """
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def short(values: np.ndarray) -> list[float | None]:
    """Numbers to four significant digits; what is not finite becomes None."""
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float).ravel().tolist()]
