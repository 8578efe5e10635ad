"""Pipelines: what is cached and what is not, sweeps, messages, events, exit codes, exports, the schema."""

import itertools
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invsolve import Pipeline, UserError
from invsolve.datasets import hdf5
from invsolve.files.opening import open_images
from invsolve.pipeline import Evaluate, Export, Load, Reconstruct, Simulate, StepFailed, Stop, Stopped, schema, sweep
from invsolve.pipeline.graph import expand
from invsolve.pipeline.reading import check
from tests.support.pipelines import TEXT, write
from tests.support.types import Cli

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"
FAST = TEXT.replace('prior = "slow"\nstrategy = "dds"\nset = {steps = "${steps}"}\nsamples = 2', 'strategy = "linear"')


def states(path: Path, **changes: object) -> dict[str, str]:
    plan = Pipeline.load(path, {key.replace("__", "."): value for key, value in changes.items()}, trust=True).plan()
    return {planned.job.name: planned.state for planned in plan.jobs}


def run(path: Path, **changes: object) -> None:
    Pipeline.load(path, {key.replace("__", "."): value for key, value in changes.items()}, trust=True).run()


ALL = {"truth": "cached", "scan": "cached", "recon": "cached", "scores": "cached"}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    path = write(tmp_path, FAST)
    assert set(states(path).values()) == {"run"}
    run(path)
    assert states(path) == ALL
    return path


def test_a_second_run_computes_nothing(done: Path) -> None:
    events: list[dict] = []
    results = Pipeline.load(done, trust=True).run(on_event=events.append)
    assert {e["event"] for e in events} == {"plan", "cached", "end"}
    assert all(result.cached for result in results)
    assert results["scores"][0].metrics["psnr"] > 0


def test_a_changed_parameter_runs_what_follows_from_it(done: Path) -> None:
    assert states(done, recon__seed=1) == {**ALL, "recon": "run", "scores": "run"}
    assert states(done, variables__views=7) == {"truth": "cached", "scan": "run", "recon": "run", "scores": "run"}
    reasons = {p.job.name: p.reason for p in Pipeline.load(done, {"scan.seed": 3}, trust=True).plan().jobs}
    assert reasons == {"truth": "", "scan": "seed 0 -> 3", "recon": "input changed", "scores": "input changed"}


@pytest.mark.parametrize(
    "change", [{"recon__batch_size": 3}, {"scores__to": "elsewhere.json"}, {"recon__device": "cuda"}]
)
def test_what_cannot_change_the_output_runs_nothing(change: dict, done: Path) -> None:
    assert states(done, **change) == ALL


def test_changed_file_content_runs_all_and_going_back_runs_nothing(done: Path) -> None:
    before = (done.parent / "truth.h5").read_bytes()
    with h5py.File(done.parent / "truth.h5", "r+") as file:
        file["x"][0, 0, 0, 0] += 1.0
    assert set(states(done).values()) == {"run"}
    (done.parent / "truth.h5").write_bytes(before)
    assert states(done) == ALL


def test_a_moved_file_is_the_same(done: Path) -> None:
    (done.parent / "truth.h5").rename(done.parent / "moved.h5")
    assert states(done, truth__path="moved.h5") == ALL


def test_changed_plugin_or_code_runs_all(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = done.parent / "slow.py"
    text = plugin.read_text()
    plugin.write_text(text + "\n")
    assert set(states(done).values()) == {"run"}
    plugin.write_text(text)
    assert states(done) == ALL
    monkeypatch.setattr("invsolve.pipeline.keys.code_version", lambda: "another")
    plan = Pipeline.load(done, trust=True).plan()
    assert {p.state for p in plan.jobs} == {"run"}
    assert "invsolve changed" in plan.jobs[0].reason


def test_a_file_named_by_a_parameter_counts_by_its_content(tmp_path: Path) -> None:
    mask = np.ones((16, 16), "f4")
    mask[::2] = 0
    np.save(tmp_path / "mask.npy", mask)
    text = FAST.replace(
        'operator = "ct"\nset = {angles = "${views}"}', 'operator = "inpainting"\nset = {mask = "mask.npy"}'
    )
    path = write(tmp_path, text)
    run(path)
    assert states(path) == ALL
    np.save(tmp_path / "mask.npy", 1 - mask)
    assert states(path) == {"truth": "cached", "scan": "run", "recon": "run", "scores": "run"}


def test_an_output_that_was_changed_or_lost_is_made_again(done: Path) -> None:
    (scan,) = done.parent.glob("p_runs/scan-*/scan.h5")
    whole = scan.read_bytes()
    scan.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert states(done) == {**ALL, "scan": "run"}
    scan.unlink()
    assert states(done) == {**ALL, "scan": "run"}
    run(done)
    assert scan.read_bytes() == whole


def test_force_runs_a_step_and_what_follows(done: Path) -> None:
    plan = Pipeline.load(done, trust=True).plan(force=["recon"])
    assert [p.job.name for p in plan.jobs if p.state == "run"] == ["recon", "scores"]
    results = Pipeline.load(done, trust=True).run(plan)
    assert [r.step for r in results if not r.cached] == ["recon", "scores"]


def test_prune_keeps_what_is_used(done: Path) -> None:
    run(done, scan__seed=5)
    removed = Pipeline.load(done, trust=True).prune()
    assert sorted(p.name.split("-")[0] for p in removed) == ["recon", "scan", "scores"]
    assert states(done) == ALL
    assert Pipeline.load(done, trust=True).prune() == []


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        path = write(tmp_path / name, FAST)
        run(path)
        (scan,) = path.parent.glob("p_runs/scan-*/scan.h5")
        runs.append((scan.parent.name, scan.read_bytes(), (path.parent / "out/all.json").read_bytes()))
    assert runs[0] == runs[1]


# Names and values of sweeps, where they stand, and which steps see them.
AXES = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True), min_size=1, max_size=4)


@given(AXES, st.data())
def test_sweeps_expand_into_products(axes: list[list[int]], data: st.DataObject) -> None:
    """A chain of steps; sweep k is first seen at a step of its own, through a variable or inline."""
    first = [data.draw(st.integers(0, 3)) for _ in axes]
    inline = [data.draw(st.booleans()) for _ in axes]
    tables: list[dict] = [{"type": "load", "path": "x.h5", "read": {}}]
    tables += [{"type": "preprocess", "input": f"s{k - 1}", "read": {}} for k in range(1, 4)]
    variables = {}
    for k, values in enumerate(axes):
        value: object = {"sweep": values}
        if not inline[k]:
            variables[f"v{k}"], value = value, f"${{v{k}}}"
        tables[first[k]]["read"][f"p{k}"] = value
    document = check({"variables": variables, "steps": {f"s{k}": t for k, t in enumerate(tables)}}, "p.toml", "p")
    graph = expand(document, "p.toml")
    for level in range(4):
        seen = [k for k in range(len(axes)) if first[k] <= level]
        expected = set(itertools.product(*(axes[k] for k in seen)))
        jobs = [job for job in graph.jobs if job.name == f"s{level}"]
        got = []
        for job in jobs:
            merged: dict[str, Any] = {}
            at = job
            while True:
                merged |= at.step.read  # type: ignore[attr-defined]
                if not at.inputs:
                    break
                at = at.inputs["input"]
            got.append(tuple(merged[f"p{k}"] for k in seen))
        assert len(got) == len(expected)
        assert set(got) == expected
        assert len({job.branch for job in jobs}) == len(jobs)
    points = graph.points()
    assert len(points) == len({graph.title(p) for p in points}) == int(np.prod([len(v) for v in axes]))
    for point in points:
        assert graph.named(graph.title(point)) == point
        assert [job.name for job in graph.at(point)] == ["s0", "s1", "s2", "s3"]
    assert {job for point in points for job in graph.at(point)} == set(graph.jobs)


def test_one_point_at_a_time_fills_the_whole(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path, FAST.replace("views = 6", "views = {sweep = [4, 6]}"))
    assert cli("run", "--trust", path, "--points")[1].split() == ["views=4", "views=6"]
    assert cli("run", "--trust", path, "--index", 1)[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["views=6.json"]
    code, out, _ = cli("run", "--trust", path, "--dry-run", "--json")
    state = {(row["step"], row["branch"]): row["state"] for row in json.loads(out)}
    assert state["truth", ""] == state["scan", "views=6"] == state["scores", "views=6"] == "cached"
    assert state["scan", "views=4"] == "run"
    assert cli("run", "--trust", path, "--only", "views=4")[0] == code == 0
    assert {row["state"] for row in json.loads(cli("run", "--trust", path, "--dry-run", "--json")[1])} == {"cached"}
    both = cli("run", "--trust", path, "--dry-run", "--json", "--only", "views=6", "--only", "views=4")[1]
    assert {"views=4", "views=6"} <= {row["branch"] for row in json.loads(both)}
    for wrong, text in (
        (("--index", 2), "0 to 1"),
        (("--only", "vews=4"), "'views'"),
        (("--only", "views=5"), "views"),
    ):
        code, _, err = cli("run", "--trust", path, *wrong)
        assert code == 2
        assert text in err


WRONG = [
    ('type = "simulate"', 'type = "simulat"', r"step 'scan': unknown type 'simulat'.*'simulate'"),
    ("noise =", "nois =", r"step 'scan' \(simulate\) has no key 'nois'.*'noise'"),
    ('input = "truth"', 'input = "trut"', r"step 'scan': input = 'trut' names no step.*'truth'"),
    ('input = "truth"', 'input = "scores"', r"circle: scan -> scores -> recon -> scan|circle"),
    ('input = "truth"\n', "", r"step 'scan' \(simulate\) needs input"),
    ('input = "scan"', 'input = "truth"', r"step 'recon': input = 'truth' gives images, expected measurement"),
    ("samples = 2", 'samples = "two"', r"step 'recon': samples = 'two' is wrong: .*integer.*Samples per item"),
    ("samples = 2", "samples = 0", r"step 'recon': samples = 0 is wrong"),
    ("samples = 2", "samples = true", r"step 'recon': samples = True is wrong"),
    ("steps = 8", "stps = 8", r"step 'recon'.*unknown variable 'steps'.*'stps'"),
    (
        'set = {steps = "${steps}"}',
        "set = {stps = 8}",
        r"step 'recon': strategy 'dds' has no parameter 'stps'.*'steps'",
    ),
    ('set = {steps = "${steps}"}', 'set = {steps = "a"}', r"step 'recon': strategy 'dds': steps='a' is not int"),
    ('operator = "ct"', 'operator = "ctt"', r"step 'scan': unknown operator 'ctt'.*'ct'"),
    ('prior = "slow"', 'prior = "slwo"', r"step 'recon': unknown prior 'slwo'.*'slow'"),
    ('prior = "slow"\n', "", r"step 'recon': strategy 'dds' needs a prior"),
    ('strategy = "dds"', 'strategy = "ddss"', r"step 'recon': unknown strategy 'ddss'.*'dds'"),
    ('path = "truth.h5"', 'path = "trth.h5"', r"step 'truth': .*trth.h5: no such file.*'truth.h5'"),
    ("gaussian:0.05", "gauss:0.05", r"step 'scan': unknown noise 'gauss'.*'gaussian'"),
    ("views = 6", 'views = "${views}"', r"circle: views -> views"),
    ("views = 6", 'views = "${env:NO_SUCH}"', r"environment variable 'NO_SUCH' is not set"),
    ("views = 6", "views = {sweep = []}", r"sweep = \[\] must be a list"),
    ("views = 6", "views = {sweep = [4, 4]}", r"two values are both called '4'"),
    ("views = 6", "views = {sweep = [4, 5]}\n[vars]", r"unknown key 'vars'.*'variables'"),
    ("out/${branch}.json", "out/scores.txt", r"step 'scores': to = .*must end in .json"),
    ("[steps.truth]", "[steps.truth", r"p.toml: is not TOML"),
]


@pytest.mark.parametrize(("old", "new", "text"), WRONG, ids=[new.split("\n")[0][:30] or old for old, new, _ in WRONG])
def test_what_is_wrong_is_one_line_and_runs_nothing(old: str, new: str, text: str, tmp_path: Path, cli: Cli) -> None:
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new))
    code, out, err = cli("run", "--trust", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(text, err), err
    assert str(path) in err
    assert not (tmp_path / "p_runs").exists()


def test_two_branches_cannot_write_one_file(tmp_path: Path) -> None:
    text = FAST.replace("views = 6", "views = {sweep = [4, 5]}").replace("${branch}", "scores")
    with pytest.raises(UserError, match="branch"):
        Pipeline.load(write(tmp_path, text), trust=True)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("recn.samples=3", "there is no step 'recn'.*'recon'"),
        ("recon.sampels=3", "has no key 'sampels'.*'samples'"),
        ("variables.vews=3", "there is no variable 'vews'.*'views'"),
        ("views", "KEY=VALUE"),
    ],
)
def test_set_of_something_that_is_not_there(setting: str, text: str, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("run", "--trust", write(tmp_path), "--set", setting)
    assert code == 2
    assert re.search(text, err), err


def test_set_changes_steps_and_variables(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWS", "9")
    path = write(tmp_path)
    changes = {
        "variables.views": "${env:VIEWS}",
        "recon.set.steps": 3,
        "steps.scan.seed": 4,
        "recon.samples": "${env:VIEWS}",
    }
    jobs = {job.name: job.step for job in Pipeline.load(path, changes, trust=True).graph.jobs}
    assert (jobs["recon"].set, jobs["scan"].seed, jobs["recon"].samples) == ({"steps": 3}, 4, 9)  # type: ignore[attr-defined]
    assert jobs["scan"].set == {"angles": "9"}  # type: ignore[attr-defined]
    assert cli("run", "--trust", path, "--dry-run", "--set", "recon.samples=3")[0] == 0


def test_a_dollar_can_be_written(tmp_path: Path) -> None:
    jobs = Pipeline.load(write(tmp_path), {"scores.to": "$${x}${views}.json"}, trust=True).graph.jobs
    assert jobs[-1].step.to == "${x}6.json"  # type: ignore[attr-defined]


def test_log_json_and_a_failing_step(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path, FAST.replace("views = 6", "views = {sweep = [4, 6]}"))
    log = tmp_path / "log.jsonl"
    assert cli("run", "--trust", path, "--log-json", log)[0] == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in lines] == ["plan", *["start", "done"] * 1, *(e["event"] for e in lines[3:-1]), "end"]
    done = [e for e in lines if e["event"] == "done"]
    assert len(done) == 7
    assert {"time", "step", "branch", "key", "seconds", "output", "metrics"} <= set(done[0])
    assert all(Path(e["output"]).exists() for e in done)
    assert ["nrmse" in e["metrics"] for e in done if e["step"] == "scores"] == [True] * 2
    code, out, _ = cli("run", "--trust", path, "--log-json", "-")
    assert code == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["plan", *["cached"] * 7, "end"]

    with h5py.File(tmp_path / "truth.h5", "r+") as file:
        file["x"][1] = np.nan
    code, out, err = cli("run", "--trust", path, "--keep-going", "--log-json", "-")
    assert code == 1
    assert "NaN" in err
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert events.count("failed") == 2
    assert events.count("skipped") == 4
    assert json.loads(out.splitlines()[-1])["state"] == "failed"
    with pytest.raises(StepFailed, match=r"scan \[views=4\].*NaN"):
        Pipeline.load(path, trust=True).run()


def test_asked_to_stop_it_stops_and_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    stop = Stop()

    def at_the_reconstruction(what: dict) -> None:
        if what["event"] == "start" and what["step"] == "recon":
            stop.request(15)

    with pytest.raises(Stopped, match="recon"):
        Pipeline.load(path, trust=True).run(stop=stop, on_event=at_the_reconstruction)
    assert states(path)["scan"] == "cached"
    assert states(path)["recon"] in ("run", "resume")
    assert [r.cached for r in Pipeline.load(path, trust=True).run()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("form", "axes"), [("npy", "item,channel,row,column"), ("tiff", "item,row,column"), ("nifti", None), ("h5", None)]
)
def test_what_is_exported_reads_back(form: str, axes: str | None, tmp_path: Path) -> None:
    write(tmp_path, FAST)
    steps = {
        "truth": Load(path="truth.h5"),
        "scan": Simulate(input="truth", operator="ct", set={"angles": 6}, noise="gaussian:0.05"),
        "recon": Reconstruct(input="scan", strategy="linear"),
        "files": Export(input="recon", format=form),  # type: ignore[arg-type]
    }
    results = Pipeline(steps, base=tmp_path).run()
    mean = hdf5.read_result(results["recon"][0].output).mean
    back = open_images(results["files"][0].output, *(("array", {"axes": axes}) if axes else ())).x
    np.testing.assert_array_equal(back[0:2].numpy(), mean[0:2].numpy())


def test_an_exported_reconstruction_can_be_the_truth_of_another(tmp_path: Path) -> None:
    write(tmp_path, FAST)
    steps = {
        "truth": Load(path="truth.h5"),
        "full": Simulate(input="truth", operator="ct", set={"angles": 60}, noise="gaussian:0.001"),
        "few": Simulate(input="truth", operator="ct", set={"angles": sweep(5, 60)}, noise="gaussian:0.001"),
        "reference": Reconstruct(input="full", strategy="linear"),
        "images": Export(input="reference", format="h5"),
        "recon": Reconstruct(input="few", strategy="linear"),
        "scores": Evaluate(input="recon", truth="images"),
        "picture": Export(input="recon", format="png", window=[0.0, 1.0], to="${branch}.png"),
    }
    results = Pipeline(steps, base=tmp_path).run()
    few, full = (result.metrics["psnr"] for result in results["scores"])
    assert full > few + 10
    assert (tmp_path / "few.set.angles=5.png").read_bytes().startswith(b"\x89PNG")


def test_preprocess_keeps_what_the_layout_makes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sinogram = rng.uniform(1, 2, (3, 8, 16)).astype("f4")
    np.save(tmp_path / "raw.npy", sinogram)
    read = {"axes": "row,angle,detector", "angles": 8, "values": "integrals", "centre": 7.5}
    steps = {
        "raw": Load(path="raw.npy", layout="array", read=read),
        "scan": {"type": "preprocess", "input": "raw", "noise": "gaussian:0.1"},
        "direct": Reconstruct(input="raw", strategy="linear", noise="gaussian:0.1"),
        "kept": Reconstruct(input="scan", strategy="linear"),
    }
    results = Pipeline(steps, base=tmp_path).run()  # type: ignore[arg-type]
    direct, kept = (hdf5.read_result(results[name][0].output).mean[0:3] for name in ("direct", "kept"))
    np.testing.assert_allclose(direct, kept, rtol=1e-5, atol=1e-6)
    with h5py.File(results["scan"][0].output) as file:
        np.testing.assert_array_equal(file["y"][:], sinogram)


def test_the_schema_knows_the_examples_and_refuses_mistakes(cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = cli("run", "--schema")
    assert code == 0
    assert json.loads(out) == schema()
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    texts = [TEXT, *(path.read_text() for path in sorted(EXAMPLES.glob("*.toml")))]
    assert len(texts) >= 2
    for text in texts:
        validator.validate(tomllib.loads(text))
    for old, new in (
        ('type = "simulate"', 'type = "simulat"'),
        ("noise =", "nois ="),
        ("samples = 2", 'samples = "two"'),
        ("samples = 2", "samples = 0"),
        ('input = "truth"\n', ""),
        ('type = "load"\n', ""),
        ("[variables]", "[vars]"),
    ):
        assert not validator.is_valid(tomllib.loads(TEXT.replace(old, new))), new
