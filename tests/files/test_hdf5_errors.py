"""Every way in which an HDF5 file can be broken: one line that names the file, the fault and the remedy."""

import multiprocessing
import pickle
from multiprocessing.synchronize import Event
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from invsolve.datasets.hdf5 import LazyRows, fingerprint, open_readonly, read_images, stored_text
from invsolve.errors import UserError


def message(path: Path, dataset: str = "x") -> str:
    with pytest.raises(UserError) as caught:
        LazyRows(path, dataset)[0:1]
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 1, 6, 5)
    return path


@pytest.mark.parametrize(
    ("content", "fault", "remedy"),
    [
        (b"", "is empty (0 bytes)", "again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git-LFS pointer", "git lfs pull"),
        (b"these are not numbers\n", "no HDF5 signature", "convert"),
        (b"PK\x03\x04" + bytes(60), "a zip archive", "numpy.save"),
        (b"\x93NUMPY" + bytes(60), ".npy", "end in .npy"),
        (b"GIF89a" + bytes(60), "a GIF image", "PNG"),
        (b"MATLAB 5.0 MAT-file" + bytes(60), "a MATLAB file of version 5", "-v7.3"),
    ],
)
def test_content_that_is_no_hdf5(tmp_path: Path, content: bytes, fault: str, remedy: str) -> None:
    path = tmp_path / "scan.h5"
    path.write_bytes(content)
    text = message(path)
    assert fault in text
    assert remedy in text


def test_missing_file_suggests_its_neighbour(good: Path) -> None:
    assert "Did you mean 'images.h5'" in message(good.with_name("image.h5"))
    assert "does not exist either" in message(good.parent / "nowhere" / "a.h5")


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in message(tmp_path)


def test_truncated_file(good: Path) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: len(data) // 2])
    text = message(good)
    assert "truncated" in text
    assert f"{len(data) // 2} of {len(data)} bytes" in text


def test_damaged_structure(good: Path) -> None:
    data = bytearray(good.read_bytes())
    data[9:60] = b"\xa5" * 51
    good.write_bytes(data)
    assert "again" in message(good)


def _hold(path: Path, ready: Event, done: Event) -> None:
    with h5py.File(path, "r+"):
        ready.set()
        done.wait(120)


def test_locked_by_a_writer(good: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(good, ready, done))
    writer.start()
    try:
        assert ready.wait(120)
        assert "another process has it open for writing" in message(good)
    finally:
        done.set()
        writer.join(20)
    assert LazyRows(good, "x").shape == (4, 1, 6, 5)


def test_unknown_filter(good: Path) -> None:
    with h5py.File(good, "a") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((2, 2))
        properties.set_filter(32123, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"z", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4, 2)), properties)
        file["z"][:] = 1
    text = message(good, "z")
    assert "filter 32123" in text
    assert "(4, 2)" in text
    assert "hdf5plugin" in text


def test_broken_links(good: Path) -> None:
    with h5py.File(good, "a") as file:
        file["away"] = h5py.ExternalLink("gone.h5", "/entry/data")
        file["loose"] = h5py.SoftLink("/not/there")
    assert "'gone.h5'" in message(good, "away")
    assert "put that file beside" in message(good, "away/deeper")
    assert "'/not/there'" in message(good, "loose")


def test_missing_dataset_lists_what_is_there(good: Path) -> None:
    with h5py.File(good, "a") as file:
        file["entry/kspace"] = np.zeros((3, 2))
    text = message(good, "entry/kspce")
    assert "'entry/kspace' (3, 2) float64" in text
    assert "'x' (4, 1, 6, 5) float32" in text
    assert "Did you mean 'entry/kspace'" in text
    assert "is a group (holding kspace)" in message(good, "entry")


def test_text_scalar_empty_and_unwritten(good: Path) -> None:
    with h5py.File(good, "a") as file:
        file["words"] = ["a", "b"]
        file["scalar"] = 3.0
        file["none"] = np.zeros((0, 3))
        file.create_dataset("half", (4, 3), "f4", chunks=(1, 3))[1] = 5
    assert "expected numbers" in message(good, "words")
    assert "is empty" in message(good, "scalar")
    assert "is empty" in message(good, "none")
    assert "never completely written" in message(good, "half")


def test_virtual_dataset_without_its_source(good: Path, tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((4, 1, 6, 5), "f4")
    layout[:] = h5py.VirtualSource("images.h5", "x", (4, 1, 6, 5))
    path = tmp_path / "virtual.h5"
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    assert torch.equal(LazyRows(path, "x")[:], LazyRows(good, "x")[:])
    good.unlink()
    assert "'images.h5', which is missing" in message(path)


def test_bit_flip_is_caught_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).random((2, 50)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(1, 50), fletcher32=True)
    data = bytearray(path.read_bytes())
    data[data.find(values[0].tobytes()) + 17] ^= 4
    path.write_bytes(data)
    assert "cannot be read" in message(path)
    assert torch.equal(LazyRows(path, "x")[1:2][0], torch.from_numpy(values[1]))


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 3), slice(-1, None), slice(None), slice(3, 0, -2), slice(2, 2)])
def test_slices_are_those_of_an_array(good: Path, rows: slice) -> None:
    with h5py.File(good) as file:
        wanted = file["x"][:][rows]
    lazy = pickle.loads(pickle.dumps(LazyRows(good, "x")))
    assert np.array_equal(lazy[rows].numpy(), wanted)
    assert np.array_equal(LazyRows(good, "x", items=[2, 0])[0:2].numpy()[:, 0, 0, 0], [60, 0])


def test_types(good: Path) -> None:
    with h5py.File(good, "a") as file:
        file["counts"] = np.array([[1, 65535]], np.uint16)
        file["wide"] = np.array([[1 + 2j]], np.complex128)
        file["matlab"] = np.array([[(1.0, 2.0)]], [("real", "f8"), ("imag", "f8")])
    assert LazyRows(good, "counts")[:].tolist() == [[1.0, 65535.0]]
    for name in ("wide", "matlab"):
        rows = LazyRows(good, name)
        assert rows.dtype == torch.complex64
        assert rows[:].dtype == torch.complex64
        assert rows[:].tolist() == [[1 + 2j]]


def test_a_file_that_changes_is_noticed(good: Path) -> None:
    rows = LazyRows(good, "x")
    with h5py.File(good, "a") as file:
        file["more"] = np.zeros(1000)
    with pytest.raises(UserError, match="changed while it was being read"):
        rows[0:1]


def test_input_is_opened_read_only(good: Path) -> None:
    before = good.read_bytes()
    with open_readonly(good) as file, pytest.raises((OSError, ValueError, KeyError)):
        file["new"] = 1
    assert good.read_bytes() == before


def test_images_need_a_channel_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(UserError, match=r"\(3, 8, 8\): expected \(items, channels, rows, columns\).*x\[:, None\]"):
        read_images(path)
    with h5py.File(path, "a") as file:
        file["x"].attrs["axes"] = "item channel position"
    assert read_images(path).shape == (3, 8, 8)


def test_fingerprint(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(good)
    copy = tmp_path / "copy.h5"
    copy.write_bytes(good.read_bytes())
    assert fingerprint(copy) == first
    data = bytearray(good.read_bytes())
    data[-3] ^= 1
    copy.write_bytes(data)
    assert fingerprint(copy) != first
    monkeypatch.setattr("invsolve.datasets.hdf5.reading._WHOLE", 10)
    monkeypatch.setattr("invsolve.datasets.hdf5.reading._PIECE", 4)
    assert fingerprint(good).startswith("sampled:")
    assert fingerprint(good) != fingerprint(copy)
    copy.write_bytes(good.read_bytes() + b"\0")
    assert fingerprint(good) != fingerprint(copy)


@pytest.mark.parametrize(
    "value", [None, 10**12, np.zeros(3), np.zeros(0, "S4")], ids=["group", "number", "numbers", "none"]
)
def test_text_that_is_none(value: object, tmp_path: Path) -> None:
    """A number taken for bytes would be as many bytes as it says."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if value is None:
            file.create_group("header")
        else:
            file["header"] = value
        file["good"] = "<xml/>"
    with open_readonly(path) as file:
        assert stored_text(file, "good") == b"<xml/>"
        with pytest.raises(UserError, match=r"/header: (holds .*|is a group), expected a dataset of text"):
            stored_text(file, "header")


def test_text_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("many", (2**36,), "S8", chunks=(2**10,))
        file["many"][0] = b"<xml/>"
        file.create_dataset("long", (2,), f"S{2**30}", chunks=(1,))
    with open_readonly(tmp_path / "a.h5") as file:
        assert stored_text(file, "many") == b"<xml/>"
        with pytest.raises(UserError, match=r"/long: says that it holds text of 1073741824 bytes"):
            stored_text(file, "long")
