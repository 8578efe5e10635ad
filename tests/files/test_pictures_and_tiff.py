"""Pictures, TIFFs of every habit and arrays of every type as images: the numbers that pillow, tifffile and NumPy give."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import invsolve
from invsolve.datasets.layouts.array import Array
from invsolve.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 6)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (8, 6, 3)).astype(np.uint8)
STACK = RNG.integers(0, 60000, (5, 8, 6)).astype(np.uint16)


def values(path: Path, **options: Any) -> np.ndarray:
    stack = Array(**options).images(path)
    return stack.x[0 : len(stack.x)].numpy()


def notes(path: Path, **options: Any) -> str:
    return " | ".join(Array(**options).images(path).notes)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_single_pictures(ending: str, tmp_path: Path) -> None:
    grey, colour = tmp_path / f"g.{ending}", tmp_path / f"c.{ending}"
    Image.fromarray(GREY).save(grey)
    Image.fromarray(COLOUR).save(colour)
    assert Array.opens(grey)
    assert np.array_equal(values(grey)[0, 0], np.asarray(Image.open(grey)))
    stored = np.asarray(Image.open(colour)).astype(np.float64)
    assert np.array_equal(values(colour)[0], stored.transpose(2, 0, 1))
    assert "3 channels; grey=true" in notes(colour)
    # Pillow's own luma is rounded to whole numbers.
    assert np.abs(values(colour, grey=True)[0, 0] - np.asarray(Image.open(colour).convert("L"))).max() <= 1
    assert np.allclose(values(colour, grey=True)[0, 0], stored @ [0.299, 0.587, 0.114], atol=1e-4)


def test_folders_of_numbered_pictures(tmp_path: Path) -> None:
    for k in (8, 9, 10, 12):
        Image.fromarray(GREY + k).save(tmp_path / f"slice_{k}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert Array.opens(tmp_path)
    assert np.array_equal(values(tmp_path)[:, 0], np.stack([GREY + k for k in (8, 9, 10, 12)]))
    assert "between slice_10.png and slice_12.png): files may be missing" in notes(tmp_path)
    Image.fromarray(COLOUR).save(tmp_path / "slice_13.png")
    with pytest.raises(UserError, match=r"slice_13\.png: is 8 x 6 colour uint8, but slice_8\.png 8 x 6 grey uint8"):
        values(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    with pytest.raises(UserError, match="holds 1 TIFF files and 5 PNG or JPEG files"):
        values(tmp_path)


def test_a_preview_beside_other_files_makes_no_folder_of_pictures(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "preview.png")
    (tmp_path / "a.h5").write_bytes(b"x")
    assert not Array.opens(tmp_path)


def test_pictures_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(STACK[0]).save(path)  # 16 bits
    assert np.array_equal(values(path)[0, 0], STACK[0])
    Image.fromarray(GREY > 100).save(path)
    assert np.array_equal(values(path)[0, 0], GREY > 100)
    palette = Image.fromarray(GREY % 4).convert("P")
    palette.putpalette([v for k in range(256) for v in (k, 0, 255 - k)])
    palette.save(path)
    assert np.array_equal(values(path)[0], np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    palette.putpalette([255 - k for k in range(256) for _ in range(3)])
    palette.save(path)
    assert np.array_equal(values(path)[0, 0], np.asarray(palette.convert("L")))
    opacity = Image.fromarray(np.dstack([COLOUR, np.full((8, 6), 255, np.uint8)]))
    opacity.save(path)
    assert np.array_equal(values(path)[0], COLOUR.transpose(2, 0, 1))
    assert "opacity is left out" in notes(path)
    opacity.putalpha(200)
    opacity.save(path)
    with pytest.raises(UserError, match=r"a\.png: is partly transparent; put it on a background"):
        values(path)
    turned = tmp_path / "t.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(turned, exif=exif)
    assert np.array_equal(values(turned)[0, 0], np.rot90(np.asarray(Image.open(turned)), -1))
    assert "turned upright" in notes(turned)
    Image.new("CMYK", (6, 8)).save(turned)
    with pytest.raises(UserError, match=r"t\.jpg: has colours of kind CMYK"):
        values(turned)


def test_colour_of_16_bits_is_refused_rather_than_cut_to_8(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    wide = np.arange(4 * 4 * 3).reshape(4, 4, 3) * 1000
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=r"a\.png: is a PNG of several channels of 16 bits"):
        values(tmp_path / "a.png")


@pytest.mark.parametrize("cut", [0, 20, 60])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_damaged_pictures(ending: str, cut: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GREY).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=rf"a\.{ending}: (is empty|cannot be read)"):
        values(tmp_path)


@pytest.mark.parametrize("how", ["imagej", "one directory", "pages", "zlib", "ome", "big-endian"])
def test_tiff_stacks_give_all_their_planes(how: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.ome.tif" if how == "ome" else "a.tif")
    options: Any = {
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "one directory": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "pages": {"photometric": "minisblack", "metadata": None},
        "zlib": {"photometric": "minisblack", "compression": "zlib"},
        "ome": {"metadata": {"axes": "ZYX"}},
        "big-endian": {"byteorder": ">", "photometric": "minisblack"},
    }[how]
    tifffile.imwrite(path, STACK, **options)
    if how == "one directory":
        # As ImageJ writes large stacks: the first directory says it is the last one.
        raw = bytearray(path.read_bytes())
        start = struct.unpack("<I", raw[4:8])[0]
        count = struct.unpack("<H", raw[start : start + 2])[0]
        raw[start + 2 + 12 * count : start + 6 + 12 * count] = bytes(4)
        path.write_bytes(raw)
        with tifffile.TiffFile(path) as file:
            assert len(file.pages) == 1
    assert np.array_equal(tifffile.imread(path), STACK)
    assert np.array_equal(values(path)[:, 0], STACK)
    assert np.array_equal(values(path, axes="row,item,column")[:, 0], STACK.transpose(1, 0, 2))


def test_a_tiff_stack_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"a\.tif: .*cannot be read"):
        values(path)


@pytest.mark.parametrize("first", [True, False])
def test_thumbnails_in_tiff_are_left_out_and_said(first: bool, tmp_path: Path) -> None:
    path, small = tmp_path / "a.tif", np.zeros((4, 3), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for page in [small, *STACK] if first else [*STACK, small]:
            writer.write(page, photometric="minisblack", subfiletype=int(page is small), metadata=None)
    assert np.array_equal(values(path)[:, 0], STACK)
    assert "of several images in the file the largest is read; left out: (4, 3) uint8" in notes(path)


def test_miniswhite_is_inverted_for_images_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, photometric="miniswhite")
    assert np.array_equal(values(path)[0, 0], np.asarray(Image.open(path)))  # pillow shows it so
    assert np.array_equal(values(path)[0, 0], 255 - GREY)
    assert "MINISWHITE (the least value is white): inverted" in notes(path)
    tifffile.imwrite(path, STACK, photometric="miniswhite")
    scan = Array(axes="row,angle,column", angles=8, values="counts", air=1, centre=2.0).open(path, invsolve.make)
    assert "MINISWHITE: the numbers are taken as they are stored" in scan.notes
    tifffile.imwrite(path, GREY.astype(np.float32), photometric="miniswhite")
    assert np.array_equal(values(path)[0, 0], GREY)
    assert "float32 is not inverted" in notes(path)


def test_colour_and_channels_of_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([COLOUR, COLOUR // 2]), photometric="rgb")
    assert np.array_equal(values(path), np.stack([COLOUR, COLOUR // 2]).transpose(0, 3, 1, 2))
    tifffile.imwrite(path, COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(values(path)[0], COLOUR.transpose(2, 0, 1))
    hyper = RNG.integers(0, 9000, (5, 2, 8, 6)).astype(np.uint16)
    tifffile.imwrite(path, hyper, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(values(path), hyper)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "<u2", "f2", "i8", "u4", "?", ">c8", "longdouble"])
@pytest.mark.parametrize("shape", [(8, 6), (5, 8, 6), (2, 1, 8, 6)])
def test_saved_arrays_are_images(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = (RNG.random(shape) * 100).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    if np.iscomplexobj(array) and len(shape) == 3:
        with pytest.raises(UserError, match="has no names for its axes"):  # they may be coils
            values(tmp_path / "a.npy")
        return
    pixels = values(tmp_path / "a.npy")
    kind = np.complex64 if np.iscomplexobj(array) else np.float32
    assert np.array_equal(pixels, array.astype(kind).reshape(pixels.shape))
    assert pixels.ndim == 4
    assert pixels.shape[1] == 1
    assert "as nothing names them" in notes(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(3, 8, 6), (8, 6, 3), (2, 8, 6, 3), (2, 7, 8, 6), (6,)])
def test_saved_arrays_that_can_be_read_in_two_ways_are_asked_about(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape))
    with pytest.raises(UserError, match=r"has no names for its axes; give axes="):
        values(tmp_path / "a.npy")
