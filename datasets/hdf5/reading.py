"""Opening and reading HDF5, read-only, with one line for every way in which a file can be broken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve.datasets.extras import check_regular
from invsolve.datasets.hdf5.guarded import GuardedFile, check_dataset
from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.sources import check_virtual, other_files
from invsolve.errors import UserError, suggestion

_WHOLE = 64 * 2**20
_PIECE = 2**20
# No scan holds as many numbers: a size beyond it is damage, and counting to it would take for ever.
_NUMBERS = 2**48
_LONGEST_TEXT = 2**26
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive; of an .npz, save one array by itself: numpy.save('x.npy', numpy.load('a.npz')['x'])",
    b"\x93NUMPY": "a NumPy .npy file; where arrays are read they end in .npy",
    b"\x89PNG": "a PNG image; where images are read they end in .png",
    b"\xff\xd8\xff": "a JPEG image; where images are read they end in .jpg",
    b"II*\x00": "a TIFF image; where images are read they end in .tif",
    b"MM\x00*": "a TIFF image; where images are read they end in .tif",
    b"GIF8": "a GIF image; save it as PNG",
    b"BM": "a BMP image; save it as PNG",
    b"RIFF": "a WebP image or another RIFF file; save it as PNG",
    b"MATLAB 5.0": "a MATLAB file of version 5 to 7.2; save it with -v7.3, or by numpy.save what scipy.io.loadmat reads",
    b"\x1f\x8b": "gzip-compressed; gunzip it first",
    b"SIMPLE  =": "a FITS file; numpy.save('x.npy', astropy.io.fits.getdata('a.fits')) makes an array of it",
    b"CDF": "a netCDF-3 file; convert it to netCDF-4 (nccopy -k nc4), which is HDF5",
    b"<": "HTML or XML; a failed download?",
}


#: What HDF5 says when the machine gives no more.
_NO_MEMORY = ("memory allocation failed", "Cannot allocate memory", "no space available for allocation")


@contextmanager
def open_readonly(path: str | Path) -> Iterator[GuardedFile]:
    """Open a file read-only; a link or dataset that leads out of its folder is refused when it is used.

    Raises:
        UserError: missing, a directory, a pipe, empty, a git-LFS pointer, not HDF5, truncated, locked or not closed; also for
            damage, and names that lead elsewhere, that are met while the file is open.
    """
    file = _open(Path(path))
    try:
        yield file
    except UserError:
        raise
    except (KeyError, OSError, RuntimeError, ValueError, OverflowError, MemoryError) as error:
        if not _of_hdf5(error):
            raise
        reason = shown(" ".join(str(error).strip("'\"").split()))
        if _out_of_memory(error):
            raise UserError(f"{path}: {_memory(reason)}") from None
        raise UserError(f"{path}: is damaged or incomplete ({reason}); copy or write it again") from None
    finally:
        file.close()


def _out_of_memory(error: BaseException) -> bool:
    # HDF5 has no class for it, only its text.
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def _memory(reason: str) -> str:
    return (
        f"memory ran out while it was read ({reason or 'nothing more is known'}); free some, or read fewer items at a time; if "
        "the file cannot hold that much it is damaged: copy or write it again"
    )


def _of_hdf5(error: BaseException) -> bool:
    """Whether an error was raised by the HDF5 library, not by what reads from it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in trace.tb_frame.f_code.co_filename


def _open(path: Path) -> GuardedFile:
    _check_kind(path)
    try:
        return GuardedFile(path, "r")
    except BlockingIOError:
        raise UserError(
            f"{path}: another process has it open for writing; wait until that is done, or stop it"
        ) from None
    except MemoryError as error:
        raise UserError(f"{path}: {_memory(str(error))}") from None
    except OSError as error:
        raise UserError(f"{path}: {_reason(str(error))}") from None


def _check_kind(path: Path) -> None:
    """Refuse what can be told from the first bytes."""
    check_regular(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected an HDF5 file; name the file in it")
    if not path.exists():
        folder = path.parent
        there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        near = suggestion(path.name, there)
        hint = (
            near
            if "Did you mean" in near
            else ("" if folder.is_dir() else f" The folder {folder} does not exist either.")
        )
        raise UserError(f"{path}: no such file; check the path.{hint}")
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not head:
        raise UserError(f"{path}: is empty (0 bytes), expected an HDF5 file; copy or write it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a git-LFS pointer, not the data; fetch the data with 'git lfs pull'")
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise UserError(f"{path}: is not an HDF5 file but {kind}")


def _reason(text: str) -> str:
    """What an OSError of the HDF5 library means."""
    if "truncated file" in text:
        sizes = dict(
            p.strip().split(" = ") for p in text.split("truncated file:")[-1].strip(" )").split(",") if " = " in p
        )
        size, stored_size = sizes.get("eof", "?"), sizes.get("stored_eof", "?")
        return f"is truncated ({size} of {stored_size} bytes); copy or download it again"
    if "signature not found" in text:
        return "is not an HDF5 file (no HDF5 signature); give an .h5, .hdf5 or .nxs file, or convert it with h5py first"
    if "already open for write" in text or "consistency flags" in text:
        return "was not closed by its writer (killed?); mend a copy with 'h5clear -s FILE', or write it again"
    if any(said in text for said in _NO_MEMORY):
        return _memory(" ".join(text.split()))
    return f"cannot be opened as HDF5 ({' '.join(text.split())}); it may be damaged: copy or write it again"


def datasets(file: h5py.File) -> dict[str, str]:
    """Path of each dataset in the file -> its shape and type, or that it lies elsewhere, as text."""
    descriptions: dict[str, str] = {}

    def visit(name: str | bytes, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset):
            try:
                descriptions[shown(name)] = f"{thing.shape} {shown(str(thing.dtype))}"
            except UserError:
                descriptions[shown(name)] = "of numbers that lie elsewhere"

    file.visititems(visit)
    return descriptions


def members(group: Any) -> Iterator[tuple[str, Any]]:
    """Name and member of each member of a file or group that can be opened.

    For those who look through a file for what they know: broken members, and links that lead outside of the file's folder,
    are nobody's concern until somebody asks for them by name, so they are passed over.
    """
    for name in group:
        try:
            member = group[name]
        except (KeyError, OSError, RuntimeError, ValueError, UserError):
            continue
        yield name, member


def dataset(file: h5py.File, name: str, real: bool = False) -> h5py.Dataset:
    """Return a dataset of numbers that can be read.

    Args:
        file: an open file.
        name: path in it.
        real: refuse complex numbers.

    Raises:
        UserError: it is missing, behind a broken link, a group, no numbers, compressed with a filter that is not
            installed, or was never completely written.
    """
    try:
        member = file[name]
    except (KeyError, OSError, RuntimeError):
        _explain_missing(file, name)
    if isinstance(member, h5py.Group):
        inside = ", ".join(sorted(shown(n) for n in member)) or "nothing"
        raise UserError(
            f"{file.filename}: {name!r} is a group (holding {inside}), expected a dataset; name one inside it"
        )
    if not isinstance(member, h5py.Dataset):
        raise UserError(f"{file.filename}: {name!r} is a {type(member).__name__}, expected a dataset; give another one")
    where = f"{file.filename}: dataset {name!r} {member.shape}"
    _check_readable(member, where)
    if real and (member.dtype.kind == "c" or member.dtype.names):
        raise UserError(f"{where}: holds complex numbers, expected real ones; give another dataset")
    return member


def _explain_missing(file: h5py.File, name: str) -> None:
    prefix = ""
    for part in name.strip("/").split("/"):
        prefix = f"{prefix}/{part}"
        try:
            link = file.get(prefix, getlink=True)
        except (KeyError, OSError, RuntimeError):
            break
        if isinstance(link, h5py.ExternalLink) and not _opens(file, prefix):
            raise UserError(
                f"{file.filename}: {prefix!r} is a link into {link.filename!r} (object {link.path!r}), which cannot be "
                "opened; put that file beside this one"
            )
        if isinstance(link, h5py.SoftLink) and not _opens(file, prefix):
            raise UserError(
                f"{file.filename}: {prefix!r} is a link to {link.path!r}, which is not in the file; write it again"
            )
    there = datasets(file)
    listed = ", ".join(f"'{n}' {text}" for n, text in list(there.items())[:8]) or "no datasets"
    more = f" and {len(there) - 8} more" if len(there) > 8 else ""
    near = suggestion(name.strip("/"), there)
    hint = near if "Did you mean" in near else ""
    raise UserError(f"{file.filename}: has no dataset {name!r}; it has {listed}{more}.{hint}")


def _opens(file: h5py.File, name: str) -> bool:
    try:
        return file[name] is not None
    except (KeyError, OSError, RuntimeError):
        return False


def _check_readable(dset: h5py.Dataset, where: str) -> None:
    if dset.shape is None:
        raise UserError(f"{where}: holds nothing (an empty dataspace); give another dataset")
    # A half-written compound of (real, imag) is what MATLAB writes for complex numbers.
    if dset.dtype.kind not in "fiubc" and dset.dtype.names != ("real", "imag"):
        raise UserError(f"{where}: holds {dset.dtype}, expected numbers; give another dataset")
    check_stored(dset, where)


def check_stored(dset: h5py.Dataset, where: str) -> None:
    """Refuse a dataset whose filter is not installed, whose sources are missing or elsewhere, or which is not all written."""
    check_dataset(dset.id)
    properties = dset.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        code, *_, label = properties.get_filter(k)
        if not _filter_available(code):
            text = label.decode(errors="replace").strip("\0") or "unnamed"
            raise UserError(
                f"{where}: is compressed with filter {code} ({text}), which is neither in HDF5 nor in hdf5plugin; set "
                "HDF5_PLUGIN_PATH to a folder that has it, or rewrite the file with gzip"
            )
    if dset.size is not None and dset.size > _NUMBERS:
        raise UserError(f"{where}: says that it holds {dset.size} numbers, which no file does; write it again")
    if dset.is_virtual:
        check_virtual(dset, where, check_stored)
    elif dset.size and dset.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        # Such parts read as zeros without a word.
        raise UserError(f"{where}: was never completely written (unwritten parts would read as zeros); write it again")


def _filter_available(code: int) -> bool:
    if not h5py.h5z.filter_avail(code):
        # Registers bitshuffle, LZ4, Zstandard, Blosc and others as it is imported; most files need none of them.
        import hdf5plugin  # noqa: F401
    return bool(h5py.h5z.filter_avail(code))


def _room_for_chunks(dset: h5py.Dataset) -> bool:
    """Whether a chunk could be decompressed now: a filter that fails does not say whether for memory or for its bytes."""
    try:
        # As it is stored, what comes out of it, and the copy that is grown on the way.
        np.empty((3, *(dset.chunks or ())), dset.dtype)
    except MemoryError:
        return False
    return True


def read(dset: h5py.Dataset, selection: Any = ()) -> np.ndarray:
    """Read part of a dataset.

    Raises:
        UserError: the bytes are damaged (checksum, decompression) or gone, or memory ran out.
    """
    try:
        values = np.asarray(dset[selection])
    except (OSError, RuntimeError, MemoryError) as error:
        where = f"{dset.file.filename}: dataset {dset.name!r} {dset.shape}"
        reason = " ".join(str(error).split())
        if _out_of_memory(error) or ("filter returned failure" in reason and not _room_for_chunks(dset)):
            raise UserError(f"{where}: {_memory(reason)}") from None
        raise UserError(f"{where}: cannot be read ({reason}); copy or write the file again") from None
    if values.dtype.names == ("real", "imag"):
        values = values["real"] + 1j * values["imag"]
    # In the machine's own byte order: nothing else goes further.
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def doubles(values: np.ndarray) -> np.ndarray:
    """Numbers in double precision; what is not one stays so, for whoever looks for it."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def to_tensor(values: np.ndarray) -> Tensor:
    """Numbers as float32, complex numbers as complex64."""
    dtype = np.complex64 if np.iscomplexobj(values) else np.float32
    # What is too large for single precision becomes infinite, which whoever uses it refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))


def native(values: Any) -> np.ndarray:
    """Numbers in the machine's own byte order, in one piece, and no wider than double precision, as torch wants them."""
    array = np.asarray(values)
    widest = {"f": np.float64, "c": np.complex128}.get(array.dtype.kind)
    if widest is not None and array.dtype.itemsize > np.dtype(widest).itemsize:
        array = array.astype(widest)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def text(value: Any) -> str:
    """An attribute as text, whether it was stored as bytes, str or an array of one."""
    if isinstance(value, np.ndarray):
        value = value.flat[0] if value.size else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def stored_text(group: h5py.Group, name: str) -> bytes:
    """The text of a dataset, one or the first of several, as bytes.

    Raises:
        UserError: it is a group, or holds no text.
    """
    member = group[name]
    where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    if not isinstance(member, h5py.Dataset) or member.dtype.kind not in "OSU" or not member.size:
        what = f"holds {member.dtype}" if isinstance(member, h5py.Dataset) else "is a group"
        raise UserError(f"{where}: {what}, expected a dataset of text; write it again")
    if member.dtype.itemsize > _LONGEST_TEXT:
        raise UserError(f"{where}: says that it holds text of {member.dtype.itemsize} bytes; write it again")
    # Of all that it says it holds, no more than the first is read.
    first = member[(0,) * member.ndim]
    return first if isinstance(first, bytes) else str(first).encode(errors="replace")


def fingerprint(path: str | Path) -> str:
    """A hash that changes when the file does: "sha256:..." of all of it below 64 MB, else "sampled:...".

    Sampled is the sha256 of the size and of 64 pieces of 1 MB, evenly spread with the first and the last among them
    (where HDF5 keeps most of its structure). A change of values between the pieces that leaves the size alone goes
    unnoticed. Name and times do not count, so that a moved file can be resumed from. Where an HDF5 file leads to others,
    which hold some of its numbers, "+files:..." of them follows.
    """
    own = _hash(Path(path))
    others = other_files(Path(path)) if h5py.is_hdf5(path) else []
    if not others:
        return own
    parts = sorted(f"{file.name} {_hash(file)}" for file in others)
    return f"{own}+files:{hashlib.sha256(chr(10).join(parts).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def _hash(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size < _WHOLE:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        digest = hashlib.sha256(str(size).encode())
        for k in range(64):
            stream.seek((size - _PIECE) * k // 63)
            digest.update(stream.read(_PIECE))
    return f"sampled:{digest.hexdigest()}"
