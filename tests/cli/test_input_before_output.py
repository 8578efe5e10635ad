"""Every command looks at its input before it touches its output: bad input leaves what is there as it was, and nothing new."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from invsolve.datasets.hdf5 import write_images
from tests.support.results import write_result
from tests.support.types import Cli

#: Commands that write, and what ends their output's name; BAD is the input, GOOD a file of images, PRIOR a prior.
COMMANDS = {
    "simulate": ("simulate BAD -o OUT --operator blur --set sigma=1", ".h5"),
    "simulate, operator": ("simulate GOOD -o OUT --operator blur --set sigma=-1", ".h5"),
    "simulate, noise": ("simulate GOOD -o OUT --operator blur --set sigma=1 --noise gaussian:-1", ".h5"),
    "reconstruct": ("reconstruct BAD -o OUT --strategy linear", ".h5"),
    "reconstruct, prior": ("reconstruct SCAN -o OUT --prior BAD --strategy dps", ".h5"),
    "reconstruct, steps": ("reconstruct SCAN -o OUT --prior natural --strategy dps --set steps=0", ".h5"),
    "reconstruct, values": ("reconstruct NAN -o OUT --strategy linear", ".h5"),
    "join": ("join RESULT BAD -o OUT", ".h5"),
    "report, page": ("report BAD -o OUT", ".html"),
    "report, sheet": ("report BAD -o OUT", ".png"),
    "report, truth": ("report RESULT --truth BAD -o OUT", ".html"),
    "train": ("train BAD -o OUT --set steps=1", ".safetensors"),
    "sample": ("sample BAD -o OUT --count 1 --steps 2", ".h5"),
    "sample, steps": ("sample natural -o OUT --count 1 --steps 0", ".h5"),
    "prior measure": ("prior measure natural BAD -o OUT", ".json"),
    "prior measure, prior": ("prior measure BAD GOOD -o OUT", ".json"),
}


@pytest.fixture
def folder(tmp_path: Path, cli: Cli) -> Path:
    rng = np.random.default_rng(0)
    write_images(tmp_path / "good.h5", rng.random((2, 1, 16, 16), np.float32))
    simulated = ("simulate", tmp_path / "good.h5", "-o", tmp_path / "scan.h5", "--operator", "blur", "--set", "sigma=1")
    assert cli(*simulated)[0] == 0
    (tmp_path / "nan.h5").write_bytes((tmp_path / "scan.h5").read_bytes())
    with h5py.File(tmp_path / "nan.h5", "a") as file:
        file["y"][0] = np.nan
    (tmp_path / "bad.h5").write_bytes(b"no such thing\n")
    write_result(tmp_path / "result.h5", 1, (1, 16, 16), 2)
    return tmp_path


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
@pytest.mark.parametrize("name", COMMANDS)
def test_bad_input_leaves_the_output_alone(name: str, there: bool, folder: Path, cli: Cli) -> None:
    command, ending = COMMANDS[name]
    out = folder / f"out{ending}"
    if there:
        out.write_bytes(b"what took a night\n")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    files = {word.upper(): folder / f"{word}.h5" for word in ("good", "bad", "scan", "nan", "result")} | {"OUT": out}
    words = [str(files.get(word, word)) for word in command.split()]
    code, printed, err = cli(*words, "--overwrite")
    assert code == 2, err
    assert printed == ""
    assert "Traceback" not in err
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert after == before
