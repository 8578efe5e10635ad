"""Virtual datasets with holes, files that lead out of their folder, pipes, damage, compression of beamlines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.hdf5 import (
    LazyRows,
    ResultFile,
    dataset,
    datasets,
    open_readonly,
    other_files,
    write_scan,
)
from invsolve.datasets.hdf5.guarded import GuardedGroup
from invsolve.datasets.layouts.nxtomo import NXtomo
from invsolve.errors import UserError
from tests.support.results import CONFIG, write_result
from tests.support.types import Cli

VALUES = np.arange(1, 4 * 3 * 5 + 1, dtype=np.float32).reshape(4, 3, 5)


def refuse(path: Path, name: str = "x") -> str:
    with pytest.raises(UserError) as caught:
        LazyRows(path, name)[0:1]
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def store(path: Path, values: np.ndarray, name: str = "x") -> Path:
    with h5py.File(path, "a") as file:
        file[name] = values
    return path


def virtual(path: Path, parts: list[tuple], shape: tuple = VALUES.shape, maxshape: tuple | None = None) -> Path:
    """A virtual dataset x; parts are (selection here, file, dataset, shape there[, selection there])."""
    layout = h5py.VirtualLayout(shape, "f4", maxshape=maxshape)
    for here, file, name, there, *selection in parts:
        source = h5py.VirtualSource(file, name, there)
        layout[here] = source[selection[0]] if selection else source
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    return path


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Two files, a virtual dataset over each, and one over both."""
    for k in (0, 1):
        store(tmp_path / f"raw{k}.h5", VALUES[2 * k : 2 * k + 2])
        virtual(tmp_path / f"middle{k}.h5", [(slice(None), f"raw{k}.h5", "x", (2, 3, 5))], (2, 3, 5))
    parts = [(slice(2 * k, 2 * k + 2), f"middle{k}.h5", "x", (2, 3, 5)) for k in (0, 1)]
    return virtual(tmp_path / "scan.h5", parts)


def test_complete_sources_are_read(halves: Path) -> None:
    assert np.array_equal(LazyRows(halves, "x")[:].numpy(), VALUES)
    assert [p.name for p in other_files(halves)] == ["middle0.h5", "middle1.h5", "raw0.h5", "raw1.h5"]


@pytest.mark.parametrize("gone", ["raw1.h5", "middle1.h5"])
def test_a_source_missing_at_any_depth(halves: Path, gone: str) -> None:
    rows = LazyRows(halves, "x")
    (halves.parent / gone).unlink()
    assert f"{gone!r}, which is missing" in refuse(halves)
    # Also after the same file was found complete a moment ago.
    with pytest.raises(UserError, match=f"{gone}.*missing"):
        rows[0:1]


def test_a_source_that_is_half_written_or_too_small(halves: Path) -> None:
    raw = halves.parent / "raw1.h5"
    raw.unlink()
    with h5py.File(raw, "w") as file:
        file.create_dataset("x", (2, 3, 5), "f4", chunks=(1, 3, 5))[0] = VALUES[2]
    assert "never completely written" in refuse(halves)
    raw.unlink()
    store(raw, VALUES[2:3])
    assert "(1, 3, 5)" in refuse(halves)
    raw.unlink()
    store(raw, VALUES[2:4], "other")
    assert "has no such dataset" in refuse(halves)
    raw.write_bytes(b"no HDF5 at all")
    assert "raw1.h5" in refuse(halves)


@pytest.mark.parametrize(
    ("parts", "covered"),
    [
        ([(slice(0, 2), "raw0.h5", "x", (2, 3, 5))], 30),
        # Two that overlap: as many values as the whole, and half of it covered.
        ([(slice(0, 2), "raw0.h5", "x", (2, 3, 5)), (slice(0, 2), "raw1.h5", "x", (2, 3, 5))], 30),
        ([(slice(0, 4, 2), "raw0.h5", "x", (2, 3, 5))], 30),
        ([((slice(0, 2), slice(0, 3), slice(0, 4)), "raw0.h5", "x", (2, 3, 5), np.s_[:, :, 1:])], 24),
    ],
    ids=["half", "overlap", "strided", "columns"],
)
def test_a_dataset_that_its_sources_do_not_cover(halves: Path, parts: list, covered: int) -> None:
    path = virtual(halves.parent / "part.h5", parts)
    assert f"cover {covered} of 60 values" in refuse(path)


def test_interleaved_sources_cover(halves: Path) -> None:
    parts = [(slice(k, 4, 2), f"raw{k}.h5", "x", (2, 3, 5)) for k in (0, 1)]
    path = virtual(halves.parent / "odd.h5", parts)
    assert np.array_equal(LazyRows(path, "x")[:].numpy(), VALUES[[0, 2, 1, 3]])


def test_files_counted_in_the_name(tmp_path: Path) -> None:
    for k in range(4):
        store(tmp_path / f"f{k}.h5", VALUES[k : k + 1])
    space, source = h5py.h5s.create_simple((4, 3, 5), (h5py.h5s.UNLIMITED, 3, 5)), h5py.h5s.create_simple((1, 3, 5))
    space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (1, 1, 1), (1, 3, 5))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_virtual(space, b"f%b.h5", b"x", source)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, properties)
    assert np.array_equal(LazyRows(tmp_path / "scan.h5", "x")[:].numpy(), VALUES)
    assert len(other_files(tmp_path / "scan.h5")) == 4
    (tmp_path / "f2.h5").unlink()
    assert "'f2.h5', which is missing" in refuse(tmp_path / "scan.h5")


def test_a_growing_source_that_stopped(tmp_path: Path) -> None:
    for k, frames in ((0, 2), (1, 1)):
        with h5py.File(tmp_path / f"f{k}.h5", "w") as file:
            file.create_dataset("x", data=VALUES[k::2][:frames], maxshape=(None, 3, 5), chunks=(1, 3, 5))
    space = h5py.h5s.create_simple((4, 3, 5), (h5py.h5s.UNLIMITED, 3, 5))
    source = h5py.h5s.create_simple((2, 3, 5), (h5py.h5s.UNLIMITED, 3, 5))
    source.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (1, 1, 1), (1, 3, 5))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for k in (0, 1):
        space.select_hyperslab((k, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (2, 1, 1), (1, 3, 5))
        properties.set_virtual(space, f"f{k}.h5".encode(), b"x", source)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, properties)
    # Frames 0, 2 and 1 are there: HDF5 gives three, whole, or four with a hole.
    with h5py.File(tmp_path / "scan.h5") as file:
        length = len(file["x"])
    if length == 3:
        assert np.array_equal(LazyRows(tmp_path / "scan.h5", "x")[:].numpy(), VALUES[:3])
    else:
        assert "cover 45 of 60" in refuse(tmp_path / "scan.h5")


def test_a_file_of_many_sources_is_opened_as_often_as_one_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[Any] = []
    opened = h5py.File.__init__

    def counted(self: h5py.File, name: Any, *given: Any, **options: Any) -> None:
        names.append(name)
        opened(self, name, *given, **options)

    openings = []
    for count in (6, 3000):
        (folder := tmp_path / str(count)).mkdir()
        store(folder / "raw.h5", np.ones((count, 2), np.float32))
        last = count - 1
        parts = [(slice(k, k + 1), "raw.h5", "x", (count, 2), np.s_[last - k : count - k]) for k in range(count)]
        path = virtual(folder / "scan.h5", parts, (count, 2))
        names.clear()
        with monkeypatch.context() as patched:
            patched.setattr(h5py.File, "__init__", counted)
            assert LazyRows(path, "x")[5:6].tolist() == [[1, 1]]
        openings.append(len(names))
    assert openings[0] == openings[1]


@pytest.mark.parametrize("chain", [1, 2, 3])
def test_a_dataset_that_is_its_own_source(tmp_path: Path, chain: int) -> None:
    for k in range(chain):
        virtual(tmp_path / f"s{k}.h5", [(slice(None), f"s{(k + 1) % chain}.h5", "x", VALUES.shape)])
    code = (
        "import sys; from invsolve.datasets.hdf5 import LazyRows; from invsolve.errors import UserError\n"
        "try: LazyRows(sys.argv[1], 'x')[0:1]\nexcept UserError as error: print(error)"
    )
    # In a process of its own: what this guards against ends the process.
    done = subprocess.run([sys.executable, "-P", "-c", code, tmp_path / "s0.h5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is its own source" in done.stdout


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir()
    (tmp_path / "scan").mkdir()
    return store(tmp_path / "private" / "secret.h5", VALUES)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("kind", ["virtual", "link", "deeper"])
def test_names_outside_of_the_folder_are_not_followed(secret: Path, absolute: bool, kind: str) -> None:
    target = str(secret) if absolute else "../private/secret.h5"
    path = secret.parents[1] / "scan" / "scan.h5"
    if kind == "virtual":
        virtual(path, [(slice(None), target, "x", VALUES.shape)])
    else:
        inner = path if kind == "link" else path.with_name("inner.h5")
        with h5py.File(inner, "w") as file:
            file["x"] = h5py.ExternalLink(target, "/x")
        if kind == "deeper":
            with h5py.File(path, "w") as file:
                file["x"] = h5py.ExternalLink("inner.h5", "/x")
    with pytest.raises(UserError, match=r"outside of the folder of this file.*beside this one"):
        LazyRows(path, "x")


def test_a_name_is_not_looked_for_where_the_command_runs(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = virtual(secret.parents[1] / "scan" / "scan.h5", [(slice(None), "secret.h5", "x", VALUES.shape)])
    monkeypatch.chdir(secret.parent)
    assert "outside of the folder" in refuse(path)


def test_a_file_that_was_moved_with_its_sources(tmp_path: Path) -> None:
    store(tmp_path / "raw.h5", VALUES)
    path = virtual(tmp_path / "scan.h5", [(slice(None), "/beamline/2024/raw.h5", "x", VALUES.shape)])
    assert np.array_equal(LazyRows(path, "x")[:].numpy(), VALUES)


def test_sources_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    store(tmp_path / "raw" / "a.h5", VALUES)
    path = virtual(tmp_path / "scan.h5", [(slice(None), "raw/a.h5", "x", VALUES.shape)])
    assert np.array_equal(LazyRows(path, "x")[:].numpy(), VALUES)


def test_external_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (4, 8), "u1", external="/etc/passwd")
    text = refuse(path)
    assert "external storage" in text
    assert "'/etc/passwd'" in text


def test_a_pipe_is_not_opened(tmp_path: Path, cli: Cli) -> None:
    pipe = tmp_path / "scan.h5"
    os.mkfifo(pipe)
    for command in (("inspect", pipe), ("reconstruct", pipe, "-o", tmp_path / "r.h5", "--strategy", "pinv")):
        code, _, err = cli(*command)
        assert code == 2
        assert f"{pipe}: is a pipe" in err
    pipe.rename(tmp_path / "raw.h5")
    path = virtual(tmp_path / "scan.h5", [(slice(None), "raw.h5", "x", VALUES.shape)])
    assert "no regular file" in refuse(path)


def test_damaged_groups_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        for k in range(20):
            file[f"group{k}/x"] = VALUES
    good = path.read_bytes()
    rng, said = np.random.default_rng(0), []
    for _ in range(150):
        data = bytearray(good)
        start = int(rng.integers(8, 6000))
        data[start : start + 8] = rng.bytes(8)
        path.write_bytes(data)
        try:
            with open_readonly(path) as file:
                datasets(file)
            LazyRows(path, "group3/x")[0:1]
        except UserError as error:
            said.append(str(error))
    assert all("\n" not in text and text.startswith(str(path)) for text in said)
    assert any("damaged or incomplete" in text for text in said)


def test_a_size_that_no_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2**60, 2), "f4", chunks=(1024, 2))
    assert "never completely written" in refuse(path) or "no file does" in refuse(path)
    virtual(path, [(slice(0, 2), ".", "y", (2, 2))], (2**60, 2))
    assert "no file does" in refuse(path)


def test_names_that_are_no_utf8(tmp_path: Path, cli: Cli) -> None:
    path = store(tmp_path / "scan.h5", VALUES, "frames")
    with h5py.File(path, "a") as file:
        file.create_dataset(b"caf\xe9\x1b[31m", data=VALUES)
    assert r"caf\xe9\x1b[31m" in refuse(path, "missing")
    code, out, err = cli("inspect", path)
    assert code == 0, err
    assert r"caf\xe9" in out
    assert "\x1b" not in out


def test_compression_of_beamlines(tmp_path: Path) -> None:
    names = ("Bitshuffle", "LZ4", "Zstd", "Blosc", "Blosc2")
    writer = (
        "import sys, h5py, hdf5plugin, numpy as np\n"
        "with h5py.File(sys.argv[1], 'w') as file:\n"
        "    for name in sys.argv[2:]:\n"
        "        file.create_dataset(name, data=np.arange(600).reshape(6, 10, 10).astype('u2'), chunks=(1, 10, 10),"
        " **getattr(hdf5plugin, name)())\n"
    )
    path = tmp_path / "scan.h5"
    subprocess.run([sys.executable, "-P", "-c", writer, path, *names], check=True)
    # Another process again: here another test may have registered the filters before.
    code = (
        "import sys; from invsolve.datasets.hdf5 import LazyRows\n"
        "for name in sys.argv[2:]: print(float(LazyRows(sys.argv[1], name)[:].sum()))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, path, *names], capture_output=True, text=True)
    assert done.stdout.split() == [str(float(599 * 300))] * len(names), done.stderr
    assert torch.equal(LazyRows(path, "Zstd")[5:6].flatten(), torch.arange(500.0, 600.0))


def test_only_what_leads_outside_is_refused(secret: Path, cli: Cli) -> None:
    path = secret.parents[1] / "scan" / "scan.h5"
    operator, values = invsolve.operator("blur", sigma=1.0), np.ones((2, 1, 8, 8), np.float32)
    write_scan(path, values, operator, invsolve.Gaussian(0.1))
    with h5py.File(path, "a") as file:
        file["away"] = h5py.ExternalLink(str(secret), "/x")
        file["kspace"] = h5py.ExternalLink("../private/secret.h5", "/x")
        layout = h5py.VirtualLayout(VALUES.shape, "f4")
        layout[:] = h5py.VirtualSource("../private/secret.h5", "x", VALUES.shape)
        file.create_virtual_dataset("joined", layout)
        file.create_dataset("raw", (4, 8), "u1", external="/etc/passwd")
        file["deep/soft"] = h5py.SoftLink("/away")
    assert LazyRows(path, "y")[:].sum() == values.sum()
    with open_readonly(path) as file:
        assert "away" in file
        assert datasets(file)["joined"] == "of numbers that lie elsewhere"
        assert file.get("away", getlink=True).filename == str(secret)
        for name in ("away", "deep/soft", "joined", "raw"):
            with pytest.raises(UserError, match=r"outside of the folder|external storage"):
                file[name][...]
            with pytest.raises(UserError, match=r"outside of the folder|external storage"):
                dataset(file, name)
        with pytest.raises(UserError, match="external storage"):
            file["raw"].read_direct(np.empty((4, 8), "u1"))
        with pytest.raises(UserError, match="outside of the folder"):
            file["deep"].file["joined"][...]
    code, out, err = cli("inspect", path)
    assert code == 0, err
    assert "a measurement by operator blur" in out
    assert "outside of the folder" in refuse(path, "away")
    with h5py.File(path, "a") as file:
        del file["operator"]
    code, _, err = cli("inspect", path)
    assert code == 2
    assert "'kspace' is a link into '../private/secret.h5', outside of the folder" in err


@pytest.mark.parametrize("link", ["L1/L1/L1", "/L1/L1/L1"])
def test_links_and_sources_that_multiply_end(link: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        # Each name leads three times through the next one: 3^40 ways.
        for k in range(40):
            file[f"L{k}"] = h5py.SoftLink(link.replace("L1", f"L{k + 1}"))
        file["L40"] = h5py.SoftLink("/")
        file["x"] = VALUES
        # Each virtual dataset is twice assembled from the next: 2^30 parts.
        for k in range(30):
            layout = h5py.VirtualLayout(VALUES.shape, "f4")
            for half in (slice(0, 2), slice(2, 4)):
                layout[half] = h5py.VirtualSource(".", f"v{k + 1}" if k < 29 else "x", VALUES.shape)[half]
            file.create_virtual_dataset(f"v{k}", layout)
    assert "'/L0' is a link to" in refuse(path, "L0")
    # 1 + 2 + 4 + ... of its sources, and itself.
    assert f"is put together from {2**20 - 1} parts" in refuse(path, "v11")
    assert torch.equal(LazyRows(path, "v26")[:], torch.from_numpy(VALUES))
    assert other_files(path) == []


def test_groups_that_hold_one_another_are_walked_once(tmp_path: Path) -> None:
    path = tmp_path / "scan.nxs"
    with h5py.File(path, "w") as file:
        for k in range(60):
            file.create_group(f"g{k}")
        for k in range(60):
            for other in range(60):
                file[f"g{k}/to{other}"] = file[f"g{other}"]
    looked = []
    plain = GuardedGroup.__getitem__

    def count(self: GuardedGroup, name: str) -> object:
        looked.append(name)
        return plain(self, name)

    with pytest.MonkeyPatch.context() as patch, open_readonly(path) as file:
        patch.setattr(GuardedGroup, "__getitem__", count)
        assert not NXtomo.recognises(file)
    # Four levels of sixty in each of sixty are 13 million.
    assert len(looked) < 5 * 60 * 60


def test_a_scan_file_does_not_name_arrays_elsewhere(secret: Path, cli: Cli) -> None:
    np.save(secret.with_suffix(".npy"), np.ones((8, 8)))
    path = secret.parents[1] / "scan" / "scan.h5"
    operator, values = invsolve.operator("inpainting", mask=torch.ones(8, 8)), np.ones((2, 1, 8, 8), np.float32)
    write_scan(path, values, operator, invsolve.Gaussian(0.1))
    with h5py.File(path, "a") as file:
        del file["operator/mask"]
        file["operator"].attrs["mask"] = str(secret.with_suffix(".npy"))
    code, out, err = cli("inspect", path)
    assert code == 0
    assert "names the file" in out
    code, _, err = cli("reconstruct", path, "-o", path.with_name("r.h5"), "--strategy", "linear")
    assert code == 2
    assert f"{path}: group '/operator': mask names the file" in err


def test_a_partial_result_whose_members_lie_elsewhere_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    partial = write_result(path, items=3, shape=(1, 8, 8), done=1)
    (tmp_path / "private").mkdir()
    target = tmp_path / "private" / "mean.h5"
    with h5py.File(partial, "a") as file, h5py.File(target, "w") as other:
        other["mean"] = file["mean"][...]
        del file["mean"]
        file["mean"] = h5py.ExternalLink(str(target), "/mean")
    before = target.read_bytes()
    with pytest.raises(UserError, match=r"its mean lies elsewhere.*--overwrite"):
        ResultFile.create(path, 3, 4, CONFIG)
    assert target.read_bytes() == before
