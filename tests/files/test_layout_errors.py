"""Every layout against every way in which a file can be broken: one line, exit code 2, nothing written."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.ct_files import DETECTOR, write_dxchange, write_nxtomo
from tests.support.mri_files import ismrmrd_lines, write_fastmri, write_lines
from tests.support.types import Cli


def write_lodopab(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["data"] = np.full((2, 1000, 513), 0.01, np.float32)
    return path


def write_array(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["k"] = np.random.default_rng(0).normal(size=(2, 4, 24, 20)) + 1j
    return path


#: How each is written, its main dataset, and the options that it is read with.
FILES = {
    "dxchange": (write_dxchange, "/exchange/data", ("--read", "centre=18")),
    "nxtomo": (write_nxtomo, f"/{DETECTOR}/data", ("--read", "centre=18")),
    "fastmri": (write_fastmri, "/kspace", ()),
    "ismrmrd": (lambda path: write_lines(path, ismrmrd_lines()), "/dataset/data", ()),
    "lodopab": (write_lodopab, "/data", ("--read", "thin=100")),
    "array": (write_array, "/k", ("--read", "axes=slice,coil,row,column", "--read", "dataset=k")),
}


def _cut(path: Path, name: str) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _missing(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]


def _link(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink("elsewhere.h5", "/data")


def _filter(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        old = file[name]
        shape, kind = old.shape, old.id.get_type()
        del file[name]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(shape)
        properties.set_filter(32123, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), properties)


def _group(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        file[f"{name}/deeper"] = np.ones(3)


def _words(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = ["not", "numbers"]


def _two_axes(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = np.ones((4, 4), np.complex64 if name in ("/kspace", "/k") else np.float32)


def _nan(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        values = file[name][()]
        if values.dtype.names:
            for row in values["data"]:
                row[:] = np.nan
        else:
            values = values.astype(np.complex64 if values.dtype.kind == "c" else np.float32)
            values[..., values.shape[-1] // 2] = np.nan
        kind = file[name].dtype if values.dtype.names else None
        del file[name]
        file.create_dataset(name, data=values, dtype=kind)


def _bytes(content: bytes) -> Callable[[Path, str], object]:
    return lambda path, name: path.write_bytes(content)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (_bytes(b""), "is empty (0 bytes)"),
        (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"), "is a git-LFS pointer"),
        (_bytes(b"these are no numbers\n"), "no HDF5 signature"),
        (_cut, "truncated"),
        (_missing, ""),
        (_link, "elsewhere.h5"),
        (_filter, "32123"),
        (_group, ""),
        (_words, ""),
        (_two_axes, "(4, 4)"),
        (_nan, "NaN"),
    ],
    ids=["empty", "lfs", "text", "truncated", "missing", "link", "filter", "group", "words", "axes", "nan"],
)
def test_one_line_exit_two_and_nothing_written(
    layout: str, harm: Callable[[Path, str], object], expected: str, tmp_path: Path, cli: Cli
) -> None:
    write, name, options = FILES[layout]
    path = write(tmp_path / "scan.h5")
    harm(path, name)
    before = path.read_bytes()
    command = ("reconstruct", path, "-o", tmp_path / "out.h5", "--strategy", "linear", "--layout", layout, *options)
    noise = ("--noise", "gaussian:1") if layout == "array" else ()
    code, out, err = cli(*command, *noise)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"invsolve: {path}"), err
    assert expected in last
    # Notes may come before; a traceback may not.
    assert "Traceback" not in err
    assert out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.h5"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("layout", FILES)
def test_unharmed_they_are_read(layout: str, tmp_path: Path, cli: Cli) -> None:
    write, _, options = FILES[layout]
    path = write(tmp_path / "scan.h5")
    named = ("--layout", layout) if layout in ("lodopab", "array") else ()
    code, out, err = cli("inspect", path, *named, *options, "--json")
    assert code == 0, err
    assert '"kind": "measurement"' in out
    assert "problem" not in out
