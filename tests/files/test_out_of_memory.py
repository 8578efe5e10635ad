"""A machine that gives no more memory is said, and not taken for a damaged file; a damaged file is not taken for that."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from invsolve.cli import app
from invsolve.datasets import hdf5
from invsolve.errors import UserError

MEGABYTE = 2**20


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """64 MB in chunks of 16 MB that decompress from next to nothing."""
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        chunks = (4, 1024, 1024)
        file.create_dataset("y", data=np.zeros((16, 1024, 1024), np.float32), chunks=chunks, compression="gzip")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_a_limit_on_memory_is_said(scan: Path) -> None:
    script = textwrap.dedent("""
        import os, resource, sys
        from invsolve.datasets import hdf5
        pages = int(open("/proc/self/statm").read().split()[0])
        for megabytes in (8, 24, 300):
            child = os.fork()
            if not child:
                limit = pages * resource.getpagesize() + megabytes * 2**20
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                try:
                    with hdf5.open_readonly(sys.argv[1]) as file:
                        print(megabytes, hdf5.read(file["y"], slice(0, 4)).shape, flush=True)
                except Exception as error:
                    print(megabytes, type(error).__name__, str(error), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    """)
    done = subprocess.run([sys.executable, "-c", script, scan], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    # Neither the array of 16 MB, nor what it is made from beside it.
    for line, megabytes in zip(lines[:2], (8, 24), strict=True):
        assert line.startswith(f"{megabytes} UserError {scan}: dataset '/y' (16, 1024, 1024): memory ran out"), done
        assert "read fewer items at a time" in line
    assert lines[2:] == ["300 (4, 1024, 1024)"]


def test_a_damaged_chunk_is_not_taken_for_memory(scan: Path) -> None:
    with h5py.File(scan) as file:
        where = file["y"].id.get_chunk_info(0)
    with scan.open("r+b") as stream:
        stream.seek(where.byte_offset + where.size // 2)
        stream.write(b"\xff" * 64)
    fault = r"cannot be read \(.*filter.*\); copy or write the file again"
    with hdf5.open_readonly(scan) as file, pytest.raises(UserError, match=fault):
        hdf5.read(file["y"], slice(0, 4))


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 7 EiB"), OSError("Unable to open (memory allocation failed)")]
)
def test_memory_that_ends_as_a_file_is_opened(scan: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("h5py.h5f.open", fails)
    fault = r"scan\.h5: memory ran out while it was read \(.*free some"
    with pytest.raises(UserError, match=fault), hdf5.open_readonly(scan):
        pass


def test_the_command_line_says_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(app, "app", fails)
    assert app.run(["inspect", "scan.h5"]) == 2
    assert "memory ran out (Unable to allocate 7 TiB); free some" in capsys.readouterr().err
