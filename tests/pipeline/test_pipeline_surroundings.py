"""Pipelines and what is around them: plugin files, files that change, the environment, torchrun, the scan of a report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from invsolve import Pipeline, UserError, jobs
from invsolve.files.opening import open_measurement
from invsolve.jobs.origin import open_scan
from invsolve.pipeline import Load, Reconstruct, Report, StepFailed
from tests.support.pipelines import TEXT, write
from tests.support.types import Cli

FAST = TEXT.replace('prior = "slow"\nstrategy = "dds"\nset = {steps = "${steps}"}\nsamples = 2', 'strategy = "linear"')


def run(path: Path) -> None:
    Pipeline.load(path, trust=True).run()


@pytest.mark.parametrize("change", [{"planes": 3}, {"precision": "bf16"}])
def test_how_the_network_calculates_counts(change: dict, tmp_path: Path) -> None:
    path = write(tmp_path, FAST)
    run(path)
    changes = {f"recon.{key}": value for key, value in change.items()}
    states = {planned.job.name: planned.state for planned in Pipeline.load(path, changes, trust=True).plan().jobs}
    assert states == {"truth": "cached", "scan": "cached", "recon": "run", "scores": "run"}


def test_a_plugin_of_the_command_line_is_loaded_and_counts(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path, TEXT.replace('plugins = ["./slow.py"]', ""))
    assert cli("run", "--trust", path, "--dry-run")[0] == 2
    plugin = tmp_path / "slow.py"
    code, _, err = cli("run", "--trust", path, "--plugin", plugin)
    assert code == 0, err
    again = ("run", path, "--plugin", plugin, "--dry-run", "--json")
    assert {row["state"] for row in json.loads(cli(*again)[1])} == {"cached"}
    plugin.write_text(plugin.read_text().replace("std=0.3", "std=0.2"))
    assert "run" in {row["state"] for row in json.loads(cli(*again)[1])}


def test_a_file_that_changes_under_a_step_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, FAST)
    simulate = jobs.simulate_file

    def meddle(*arguments: object, **more: object) -> object:
        made = simulate(*arguments, **more)  # type: ignore[arg-type]
        write(tmp_path, FAST, items=3)
        return made

    monkeypatch.setattr(jobs, "simulate_file", meddle)
    with pytest.raises(StepFailed, match="was changed meanwhile"):
        run(path)
    monkeypatch.undo()
    run(path)
    (scan,) = (tmp_path / "p_runs").glob("scan-*/scan.h5")
    assert len(open_measurement(scan).y) == 3


def test_a_report_is_given_the_scan_of_the_pipeline(tmp_path: Path) -> None:
    path = write(tmp_path, FAST)
    run(path)
    (scan,) = (tmp_path / "p_runs").glob("scan-*/scan.h5")
    shutil.copy(scan, tmp_path / "kept.h5")
    seen: list[Path | None] = []
    pipeline = Pipeline(
        {
            "scan": Load(path="kept.h5"),
            "recon": Reconstruct(input="scan", strategy="linear"),
            "page": Report(input="recon"),
        },
        base=tmp_path,
    )

    def noted(path: Path, *rest: Any) -> Any:
        seen.append(path)
        return open_scan(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("invsolve.report.open_scan", noted)
        pipeline.run()
    assert seen == [tmp_path / "kept.h5"]


def test_work_may_lie_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    path = write(tmp_path, 'work = "${env:SCRATCH}/p"\n' + FAST)
    run(path)
    assert list((tmp_path / "scratch" / "p").glob("recon-*/recon.h5"))


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, FAST)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun"):
        run(path)
    assert not (tmp_path / "p_runs" / ".locks").exists()
