"""Projections that are stored frame by frame: how often each chunk is read, and that the numbers are the same."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import invsolve
from invsolve.datasets.layouts.array import Array
from invsolve.datasets.layouts.dxchange import DXchange
from invsolve.datasets.layouts.nxtomo import NXtomo
from invsolve.datasets.tomography import row_cache as _row_cache
from tests.support.types import offered

FRAMES, ROWS, COLUMNS = 40, 48, 32


def write(path: Path, chunks: tuple[int, int, int] | None) -> Path:
    rng = np.random.default_rng(0)
    s = np.arange(COLUMNS) - 15.5
    theta = np.deg2rad(np.arange(FRAMES) * 4.5)[:, None, None]
    tall = np.linspace(5, 10, ROWS)[:, None]
    lines = 2 * 0.05 * np.sqrt(np.clip(tall**2 - (s - 3 * np.cos(theta)) ** 2, 0, None))
    with h5py.File(path, "w") as file:
        for name, mean in (
            ("data", 5000 * np.exp(-lines)),
            ("data_white", np.full((6, ROWS, COLUMNS), 5000.0)),
            ("data_dark", np.zeros((6, ROWS, COLUMNS))),
        ):
            more = {} if chunks is None else {"chunks": (min(chunks[0], len(mean)), *chunks[1:]), "compression": "gzip"}
            file.create_dataset(f"exchange/{name}", data=(100 + rng.poisson(mean)).astype("u2"), **more)
        file["exchange/theta"] = np.arange(FRAMES) * 4.5
        file["exchange/theta"].attrs["units"] = "degrees"
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each chunk of each dataset is touched."""
    counted: Counter = Counter()
    plain = h5py.Dataset.__getitem__

    def count(self: h5py.Dataset, selection: object, *more: object) -> object:
        if self.ndim == 3 and self.chunks:
            parts = selection if isinstance(selection, tuple) else (selection,)
            parts = (*parts, *[slice(None)] * (3 - len(parts)))
            touched = []
            for part, length, chunk in zip(parts, self.shape, self.chunks, strict=True):
                index = np.atleast_1d(np.arange(length)[part])
                touched.append(np.unique(index // chunk).tolist())
            counted.update((self.name, a, b, c) for a in touched[0] for b in touched[1] for c in touched[2])
        return plain(self, selection, *more)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", count)
    return counted


CHUNKS = [(1, ROWS, COLUMNS), (1, 16, 16), (4, ROWS, 8), (FRAMES, 8, COLUMNS), (7, 5, 9)]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("memory", [2**29, 4 * 10**4], ids=["memory", "scratch"])
def test_two_passes_and_the_same_numbers(
    tmp_path: Path, chunks: tuple, memory: int, reads: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_row_cache, "_MEMORY", memory)
    monkeypatch.setattr(_row_cache, "_TILE", 10**4)
    wanted = DXchange(centre=15.5).open(write(tmp_path / "plain.h5", None), invsolve.make).y[0:ROWS]
    path = write(tmp_path / "scan.h5", chunks)
    reads.clear()
    scan = DXchange(centre=15.5).open(path, invsolve.make)
    whole = torch.cat([scan.y[start : start + 8] for start in range(0, ROWS, 8)])
    assert torch.equal(whole, wanted)
    assert max(reads.values()) <= 2
    assert len(reads) == sum(-(-n // c) * -(-ROWS // chunks[1]) * -(-COLUMNS // chunks[2]) for n, c in _counts(chunks))


def _counts(chunks: tuple) -> list[tuple[int, int]]:
    return [(FRAMES, chunks[0]), (6, min(chunks[0], 6)), (6, min(chunks[0], 6))]


def test_looking_at_a_file_is_one_pass(tmp_path: Path, reads: Counter) -> None:
    path = write(tmp_path / "scan.h5", (1, ROWS, COLUMNS))
    reads.clear()
    scan = DXchange().open(path, invsolve.make)
    scan.y[0:1]
    assert max(n for (name, *_), n in reads.items() if name == "/exchange/data") == 1


def test_no_disk_and_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "scan.h5", (1, ROWS, COLUMNS))
    wanted = DXchange(centre=15.5).open(path, invsolve.make).y[0:ROWS]
    monkeypatch.setattr(_row_cache, "_MEMORY", 40000)
    monkeypatch.setattr(_row_cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    y = DXchange(centre=15.5).open(path, invsolve.make).y
    assert torch.equal(torch.cat([y[start : start + 4] for start in range(0, ROWS, 4)]), wanted)
    assert torch.equal(y[40:44], wanted[40:44])
    assert torch.equal(y[3:9], wanted[3:9])


def test_thinned_binned_and_sent_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_row_cache, "_MEMORY", 10000)
    options: dict[str, Any] = {"centre": 15.5, "thin": 3, "bin": 2, "rows": [5, 40]}
    wanted = DXchange(**options).open(write(tmp_path / "plain.h5", None), invsolve.make).y[0:35]
    y = DXchange(**options).open(write(tmp_path / "scan.h5", (1, ROWS, COLUMNS)), invsolve.make).y
    assert torch.equal(y[3:9], wanted[3:9])
    assert torch.equal(pickle.loads(pickle.dumps(y))[0:35], wanted)
    assert len(pickle.dumps(y)) < 20000


def test_a_scratch_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_row_cache, "_MEMORY", 10000)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(_row_cache.tempfile, "tempdir", str(folder))
    y = DXchange(centre=15.5).open(write(tmp_path / "scan.h5", (1, ROWS, COLUMNS)), invsolve.make).y
    y[0:2]
    assert isinstance(offered(y).cached._held, np.memmap)
    assert not list(folder.iterdir())


def test_frames_of_nxtomo_among_flats_and_darks(tmp_path: Path, reads: Counter) -> None:
    with h5py.File(write(tmp_path / "plain.h5", None)) as file:
        parts = [file[f"exchange/{name}"][:] for name in ("data_dark", "data_white", "data")]
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"], entry["definition"] = "NXentry", "NXtomo"
        detector = entry.create_group("detector")
        detector.attrs["NX_class"] = "NXdetector"
        detector.create_dataset("data", data=np.concatenate(parts), chunks=(1, ROWS, COLUMNS), compression="lzf")
        detector["image_key"] = np.repeat([2, 1, 0], [6, 6, FRAMES])
        entry["sample/rotation_angle"] = np.r_[np.zeros(12), np.arange(FRAMES) * 4.5]
        entry["sample"].attrs["NX_class"] = "NXsample"
        entry["sample/rotation_angle"].attrs["units"] = "degrees"
    wanted = DXchange(centre=15.5).open(tmp_path / "plain.h5", invsolve.make).y[0:ROWS]
    reads.clear()
    y = NXtomo(centre=15.5).open(tmp_path / "scan.nxs", invsolve.make).y
    assert torch.equal(torch.cat([y[start : start + 8] for start in range(0, ROWS, 8)]), wanted)
    assert max(reads.values()) <= 2


def test_plain_arrays_that_lie_frame_by_frame(tmp_path: Path, reads: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((FRAMES, ROWS, COLUMNS)).astype("f4")
    options: dict[str, Any] = {"axes": "theta,y,x", "values": "integrals", "angles": FRAMES, "centre": 15.5, "thin": 2}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", data=values, chunks=(1, ROWS, COLUMNS), compression="gzip")
    (tmp_path / "tiffs").mkdir()
    for k, frame in enumerate(values):
        Image.fromarray(frame).save(tmp_path / "tiffs" / f"{k}.tif")
    reads.clear()
    for name in ("a.h5", "tiffs"):
        y = Array(**options).open(tmp_path / name, invsolve.make).y
        got = torch.cat([y[start : start + 8] for start in range(0, ROWS, 8)])
        assert np.array_equal(got.numpy(), values[::2].transpose(1, 0, 2))
    assert max(reads.values()) == 1
