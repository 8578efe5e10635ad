"""Writing images for other programs: NumPy, TIFF, NIfTI, PNG, HDF5; one item in memory at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.contracts.measurement import Rows
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images
from invsolve.pipeline import steps
from invsolve.pipeline.files import Product


def export(step: steps.Export, source: Product, out: Path) -> dict[str, Any]:
    """Write the images of a result, or of an image file.

    Args:
        step: what and how.
        source: the file.
        out: the file to write.

    Returns:
        Shape, unit, and for a png the values that are black and white.

    Raises:
        UserError: the result lacks what was asked for, or the format cannot hold it.
    """
    images, unit = _images(step, source)
    shape = (len(images), *images[0:1].shape[1:])
    facts: dict[str, Any] = {"shape": list(shape), "unit": unit}
    if step.format == "h5":
        hdf5.write_images(out, images, unit)
    elif step.format == "npy":
        _npy(images, shape, out)
    elif step.format == "tiff":
        _tiff(images, shape, out)
    elif step.format == "nifti":
        _nifti(images, shape, step.spacing or [1.0, 1.0, 1.0], out)
    else:
        facts["window"] = _png(images, shape, step, out)
    return facts


def _images(step: steps.Export, source: Product) -> tuple[Rows, str]:
    if source.layout is None and not source.read and _is_result(source.path):
        view = hdf5.read_result(source.path)
        rows = getattr(view, step.what)
        if rows is None:
            raise UserError(f"the result carries no {step.what}; export another, such as what = 'mean'")
        return rows, view.unit
    if step.what != "mean":
        raise UserError(f"what = {step.what!r} is for results; these are images: leave it out")
    opened = open_images(source.path, source.layout, source.read)
    return opened.x, opened.unit


def _is_result(path: Path) -> bool:
    from invsolve.pipeline.files import kinds_of

    return "result" in kinds_of(path, None)


def _each(images: Rows) -> Iterator[np.ndarray]:
    """Each item as float32 or complex64, (C, *spatial)."""
    for k in range(len(images)):
        yield np.ascontiguousarray(images[k : k + 1][0].numpy())


def _npy(images: Rows, shape: tuple[int, ...], out: Path) -> None:
    dtype = next(_each(images)).dtype
    target = np.lib.format.open_memmap(out, mode="w+", dtype=dtype, shape=shape)
    for k, item in enumerate(_each(images)):
        target[k] = item
    target.flush()


def _planes(images: Rows, shape: tuple[int, ...], form: str) -> Iterator[np.ndarray]:
    """Each item as one real or complex plane (rows, columns)."""
    if len(shape) != 4 or shape[1] not in (1, 2):
        raise UserError(
            f"{form} cannot hold images {shape[1:]}; expected one or two channels and two axes: take npy or h5"
        )
    for item in _each(images):
        yield item[0] if len(item) == 1 else item[0] + 1j * item[1]


def _tiff(images: Rows, shape: tuple[int, ...], out: Path) -> None:
    import tifffile

    with tifffile.TiffWriter(out, bigtiff=int(np.prod(shape)) * 4 > 2**31) as writer:
        for plane in _planes(images, shape, "tiff"):
            if np.iscomplexobj(plane):
                raise UserError("tiff cannot hold complex images; take npy, nifti or h5")
            # No date or program in the file: the same images give the same bytes.
            writer.write(plane, photometric="minisblack", contiguous=True, metadata=None, software="")


def _nifti(images: Rows, shape: tuple[int, ...], spacing: list[float], out: Path) -> None:
    import nibabel

    planes = _planes(images, shape, "nifti")
    first = next(planes)
    columns, rows = shape[-1], shape[-2]
    header = nibabel.Nifti1Header()
    header.set_data_shape((columns, rows, shape[0]))
    header.set_data_dtype(first.dtype)
    header.set_xyzt_units("mm")
    # Columns run from the right to the left and rows from front to back, as radiologists see them.
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    # No time in the gzip header: the same images give the same bytes.
    with out.open("wb") as raw, gzip.GzipFile("", "wb", zlib.Z_BEST_SPEED, raw, mtime=0) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        file.write(first.tobytes())
        for plane in planes:
            file.write(plane.astype(first.dtype).tobytes())


def _png(images: Rows, shape: tuple[int, ...], step: steps.Export, out: Path) -> list[float]:
    from PIL import Image

    if step.item >= len(images):
        raise UserError(f"item = {step.item}: there are items 0 to {len(images) - 1}")
    plane = np.abs(next(_planes(images[step.item : step.item + 1], shape, "png")))
    low, high = step.window or [float(plane.min()), float(plane.max())]
    if not low < high:
        high = low + 1.0
    grey = np.clip((plane - low) / (high - low) * 255, 0, 255)
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(out)
    return [low, high]
