"""Pipelines that are killed, run twice at once, or run by Snakemake and SLURM: the same answer every time."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from invsolve import registry
from tests.support.pipelines import TEXT, samples, write
from tests.support.stops import stop_at
from tests.support.types import Cli, CliProcess

ROOT = Path(__file__).parents[2]
LONG = {"steps = 8": "steps = 30"}
#: The commands of this environment first, as an activated one has them.
PATH = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def text(**changes: str) -> str:
    document = TEXT
    for old, new in (LONG | changes).items():
        document = document.replace(old, new)
    return document


@pytest.mark.slow
def test_stopped_or_killed_the_same_command_goes_on(tmp_path: Path, cli_process: CliProcess, cli: Cli) -> None:
    whole = write(tmp_path / "whole", text())
    assert cli("run", "--trust", whole)[0] == 0
    expected = samples(whole.parent / "p_runs")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        # The folder before has a plugin of the same name.
        registry.unload_files()
        path = write(tmp_path / number.name, text())
        process = cli_process("run", "--trust", path, environment=stop_at("snapshot saved", number, count=3))
        _, err = process.communicate(timeout=300)
        assert process.returncode == code, err
        assert not list((path.parent / "p_runs").glob("recon-*/recon.h5"))
        code, planned, err = cli("run", "--trust", path, "--dry-run", "--json")
        assert code == 0, err
        state = {row["step"]: row["state"] for row in json.loads(planned)}
        assert state == {"truth": "cached", "scan": "cached", "recon": "resume", "scores": "run"}
        code, _, err = cli("run", "--trust", path)
        assert code == 0
        assert "continuing" in err
        np.testing.assert_array_equal(samples(path.parent / "p_runs"), expected)


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(tmp_path: Path, cli_process: CliProcess) -> None:
    path = write(tmp_path, text(**{"steps = 8": "steps = 60"}))
    logs = [tmp_path / f"{k}.jsonl" for k in range(2)]
    processes = [cli_process("run", "--trust", path, "--log-json", log) for log in logs]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    for step in ("truth", "scan", "recon", "scores"):
        outcomes = sorted(e["event"] for e in events if e.get("step") == step and e["event"] in ("done", "cached"))
        assert outcomes == ["cached", "done"], step


def example(folder: Path) -> Path:
    """The examples, with less to compute."""
    shutil.copytree(
        ROOT / "examples" / "pipelines", folder, ignore=shutil.ignore_patterns("*_runs", "results", "logs", ".*")
    )
    file = folder / "ct.toml"
    whole = file.read_text()
    small = (
        whole.replace("steps = 300", "steps = 20")
        .replace("steps = 20}", "steps = 4}")
        .replace("size = 64", "size = 32")
    )
    assert small != whole
    file.write_text(small[: small.index("[steps.page]")])
    return folder


@pytest.mark.slow
def test_snakemake_runs_the_example(tmp_path: Path) -> None:
    folder = example(tmp_path / "pipelines")
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    done = subprocess.run(command, cwd=folder, env=PATH, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    names = {f"views={v},method={m}" for v in (16, 32) for m in ("tv", "dds")}
    assert {p.stem for p in (folder / "results").glob("*.json")} == names
    events = [json.loads(line) for log in (folder / "logs").iterdir() for line in log.read_text().splitlines()]
    assert sum(e["event"] == "done" and e["step"] == "truth" for e in events) == 1
    again = subprocess.run(command, cwd=folder, env=PATH, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
def test_the_slurm_script_runs_one_combination(tmp_path: Path) -> None:
    folder = example(tmp_path / "pipelines")
    environment = PATH | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "1"}
    command = ["bash", "slurm_array.sh"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [p.stem for p in (folder / "results").glob("*.json")] == ["views=32,method=tv"]
    failed = subprocess.run(command, cwd=folder, env=environment | {"SLURM_ARRAY_TASK_ID": "9"}, timeout=300)
    assert failed.returncode == 2
