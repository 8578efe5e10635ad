"""A real scan, replayed column by column by a process of its own: both sides killed twice, and nothing is different."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

#: The columns that the scan has (some points of each), as an operator of groups of the user's own.
PLUGIN = """
from pathlib import Path
import torch
import invsolve
from invsolve.files.opening import open_measurement

SCAN = open_measurement(Path({scan!r}), None, {{"axes": "coil,row,column"}})
WHOLE = SCAN.operator_for(0)


class BrainColumns(type(WHOLE)):
    \"\"\"The scan's operator, acquired by the column.\"\"\"

    def __init__(self) -> None:
        super().__init__(mask=WHOLE.mask, coil_maps=WHOLE.coil_maps)

    @classmethod
    def spelled_out(cls, values):
        return values

    @property
    def group_index(self):
        return torch.where(WHOLE.mask != 0, torch.arange(WHOLE.mask.shape[-1]), -1)[None]


@invsolve.hookimpl
def invsolve_operators():
    return {{"brain-columns": BrainColumns}}
"""

#: Answers from the file, and notes down what was asked for before it answers, and after.
INSTRUMENT = """
import json, sys
import numpy as np

y, log = np.load({scan!r}), open({log!r}, "a")
measured = (np.abs(y).sum(0) > 0)
for line in sys.stdin:
    groups = json.loads(line).get("measure")
    if not groups:
        continue
    log.write(f"asked {{groups}}\\n"); log.flush()
    rows = [y[:, measured[:, g], g].ravel().astype(complex) for g in groups]
    answer = {{"groups": groups, "real": [r.real.tolist() for r in rows], "imag": [r.imag.tolist() for r in rows]}}
    sys.stdout.write(json.dumps(answer) + "\\n"); sys.stdout.flush()
    log.write("answered\\n"); log.flush()
"""


def run(folder: Path, name: str, scan: Path, kill_at: int | None) -> list[list[int]]:
    """Both processes, killed once the log has this many lines; what was asked for."""
    log = folder / f"{name}.log"
    log.unlink(missing_ok=True)
    (folder / "instrument.py").write_text(INSTRUMENT.format(scan=str(scan), log=str(log)))
    command = [
        sys.executable,
        "-P",
        "-m",
        "invsolve",
        "acquire",
        "-o",
        str(folder / f"{name}.h5"),
        "--operator",
        "brain-columns",
    ]
    command += [
        "--plugin",
        str(folder / "brain.py"),
        "--noise",
        "gaussian:0.023",
        "--prior",
        "mr-complex-128",
        "--scale",
        "-3:3",
    ]
    command += ["--budget", "40", "--initial", "80:100", "--at-once", "7", "--particles", "2", "--tile", "0"]
    command += ["--strategy", "linear", "--scout", "dds", "--warm", "0.5", "--calls", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    to_instrument, from_acquire = os.pipe()
    to_acquire, from_instrument = os.pipe()
    with (folder / f"{name}.err").open("ab") as errors:
        acquire = subprocess.Popen(command, stdin=to_acquire, stdout=from_acquire, stderr=errors, env=environment)
        python = [sys.executable, str(folder / "instrument.py")]
        instrument = subprocess.Popen(python, stdin=to_instrument, stdout=from_instrument, env=environment)
    for end in (to_instrument, from_acquire, to_acquire, from_instrument):
        os.close(end)
    while acquire.poll() is None:
        if kill_at is not None and log.exists() and len(log.read_text().splitlines()) >= kill_at:
            acquire.kill()
            break
        time.sleep(0.02)
    code = acquire.wait()
    instrument.kill()
    instrument.wait()
    assert kill_at is not None or code == 0, (folder / f"{name}.err").read_text()
    lines = log.read_text().splitlines() if log.exists() else []
    return [[int(g) for g in line[7:-1].split(",")] for line in lines if line.startswith("asked")]


@pytest.mark.slow
@pytest.mark.shared
def test_a_real_brain_killed_twice_is_the_same_brain(shared: Path, tmp_path: Path) -> None:
    scan = shared / "mri_brain8" / "cartesian_ksp.npy"
    (tmp_path / "brain.py").write_text(PLUGIN.format(scan=str(scan)))
    whole = run(tmp_path, "whole", scan, None)
    assert len(whole) == 4
    # Once before an answer (the third line is the second asking), once after one.
    asked = [run(tmp_path, "killed", scan, kill_at) for kill_at in (3, 2)]
    asked.append(run(tmp_path, "killed", scan, None))
    assert sum(map(len, asked)) > len(whole)
    with h5py.File(tmp_path / "whole.h5") as one, h5py.File(tmp_path / "killed.h5") as other:
        order = one["diagnostics/acquired_at"][0, 0]
        assert (order >= 0).sum() == 40
        assert np.array_equal(order, other["diagnostics/acquired_at"][0, 0])
        assert np.array_equal(one["samples"][:], other["samples"][:])
        assert np.isfinite(one["mean"][:]).all()
