"""An option is declared in one place and is there in all: signature, help, command line, pipeline, schema, record, resume."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
import threading
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import api, jobs
from invsolve.api.provenance import provenance
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import State, Strategy
from invsolve.datasets import hdf5
from invsolve.engine.declaration import Option
from invsolve.engine.determinism import deterministic
from invsolve.engine.options import Keywords, Options, declared
from invsolve.pipeline import Reconstruct, schema

EVERY = pytest.mark.parametrize("option", declared(), ids=lambda option: option.name)
#: A value of each kind that is not the default, as it is written in a file.
OTHER = {"device": "cuda:1", "scale": "0:2", "noise_correlation": 2.0}


def other(option: Option) -> Any:
    """A value that is good and not the default."""
    if option.name in OTHER:
        return OTHER[option.name]
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    return not option.default if isinstance(option.default, bool) else 3


def measured() -> invsolve.Measurement:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    operator, noise = invsolve.operator("blur", sigma=1.0), invsolve.Gaussian(0.05)
    return invsolve.Measurement(invsolve.simulate(x, operator, noise), operator, noise)


def test_what_decides_the_result_is_all_but_how_fast_it_comes() -> None:
    assert {option.name for option in declared() if not option.decides} == {"batch_size", "device"}


@EVERY
def test_option_is_in_the_signature_and_in_help_of_reconstruct(option: Option) -> None:
    parameter = inspect.signature(invsolve.reconstruct).parameters[option.name]
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert parameter.default == option.default
    hints = typing.get_type_hints(Options, localns={"torch": torch, "Scale": Scale})
    assert parameter.annotation == hints[option.name]
    assert typing.get_type_hints(invsolve.reconstruct)[option.name] == hints[option.name]
    for documented in (invsolve.reconstruct, Options):
        said = " ".join((inspect.getdoc(documented) or "").split())
        assert f"{option.name}: {option.text}" in said
        assert "**options" not in said


def test_the_keywords_for_type_checkers_are_the_options() -> None:
    assert list(Keywords.__annotations__) == [option.name for option in declared()]
    names: dict[str, Any] = {"torch": torch, "Scale": Scale}
    assert typing.get_type_hints(Keywords, localns=names) == typing.get_type_hints(Options, localns=names)


@pytest.fixture(scope="module")
def help_text() -> str:
    code = (
        "from invsolve.cli.app import run; import sys; run(['reconstruct', '--help']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, "help must not import torch"
    return " ".join(re.sub("[│─╭╮╰╯]", " ", done.stdout).split())


@EVERY
def test_option_is_in_the_help_of_the_command(option: Option, help_text: str) -> None:
    assert f"--{option.name.replace('_', '-')} " in help_text
    assert option.brief in help_text


@EVERY
def test_the_command_takes_the_option(
    option: Option, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[jobs.Request] = []

    def stand_in(request: jobs.Request, *_: object) -> dict[str, Any]:
        asked.append(request)
        return {"output": "", "items": 0, "seconds": 0.0}

    monkeypatch.setattr("invsolve.jobs.reconstruction.reconstruct_file", stand_in)
    value, flag = other(option), f"--{option.name.replace('_', '-')}"
    given = [flag] if value is True else [flag, value]
    assert cli("reconstruct", "scan.h5", "-o", "out.h5")[0] == 0
    code, _, err = cli("reconstruct", "scan.h5", "-o", "out.h5", *given)
    assert code == 0, err
    assert [r.options for r in asked] == [Options(), Options(**{option.name: value})]
    assert asked[0].options != asked[1].options


@EVERY
def test_the_step_of_a_pipeline_takes_the_option(option: Option) -> None:
    value = other(option)
    step = Reconstruct(input="scan", **{option.name: value})
    assert step.options == Options(**{option.name: value}) != Reconstruct(input="scan").options
    # What decides nothing leaves a finished step as it is.
    assert (option.name in step.free) is not option.decides
    assert Reconstruct(input="scan", **{option.name: "${n}"})  # a variable, filled in later


@EVERY
def test_option_is_in_the_schema_of_pipelines(option: Option) -> None:
    about = schema()["$defs"]["Reconstruct"]["properties"][option.name]
    assert about["description"] == option.brief
    assert about["default"] == option.default
    (plain,) = (kind for kind in about["anyOf"] if "$ref" not in kind)
    kinds = plain.get("anyOf", [plain])
    if option.choices:
        assert kinds[0]["enum"] == list(option.choices)
    if option.at_least is not None:
        assert kinds[0]["minimum"] == option.at_least


@EVERY
def test_option_is_recorded_and_compared_on_resume(option: Option, tmp_path: Path) -> None:
    measurement = measured()
    plain = api.plan(measurement, None, "linear", Options())
    options = Options(**{option.name: other(option)})
    # The scale is recorded as what was planned with it; the others without a run that they would fit.
    run = api.plan(measurement, None, "linear", options) if option.name == "scale" else replace(plain, options=options)
    before, after = (json.loads(json.dumps(provenance(r) | {"command": ""})) for r in (plain, run))
    out = tmp_path / "out.h5"
    with hdf5.ResultFile.create(out, 2, 1, before) as file:
        assert not file.is_done(0)
    if option.decides:
        assert option.name in after["compared"]
        assert after[option.name] != before[option.name]
        with pytest.raises(invsolve.UserError, match=f"another configuration .*{option.name}"):
            hdf5.ResultFile.create(out, 2, 1, after)
    else:
        assert option.name not in after["compared"]
        hdf5.ResultFile.create(out, 2, 1, after).close()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"samples": 0}, "samples must be at least 1, got 0"),
    ({"samples": 2.0}, "samples must be a whole number, got 2.0"),
    ({"samples": True}, "samples must be a whole number, got True"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    ({"seed": None}, "seed must be a whole number, got None"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"device": 3}, "device must be text such as cpu or cuda:1, or a torch.device, got 3"),
    ({"dtype": torch.float16}, "dtype must be float32 or float64, got 'float16'"),
    ({"scale": (1.0, 0.0)}, "scale: the range must rise, got 1 .. 0"),
    ({"scale": (0.0, math.nan)}, "scale: the range must rise, got 0 .. nan"),
    ({"scale": "1"}, "scale '1': write LOW:HIGH, such as 0:0.03, or auto"),
    ({"scale": 2.0}, "scale must be a (low, high) pair, LOW:HIGH, a Scale, 'auto' or None, got 2.0"),
    ({"noise_correlation": math.nan}, "noise_correlation must be at least 0, got nan"),
    ({"noise_correlation": "wide"}, "noise_correlation must be a number, got 'wide'"),
    ({"planes": 2}, "planes must be 1 (the slices of the file) or 3 (also those along both other axes), got 2"),
    ({"precision": "fp8"}, "precision must be float32 or bf16, got 'fp8'"),
    ({"deterministic": 1}, "deterministic must be True or False, got 1"),
    ({"sampels": 2}, "reconstruct has no option 'sampels'. Did you mean 'samples'?"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=lambda value: str(value)[:24])
def test_a_wrong_value_is_one_line_from_python(given: dict[str, Any], said: str) -> None:
    with pytest.raises(invsolve.UserError) as caught:
        invsolve.reconstruct(torch.ones(1, 1, 4, 4), "blur", noise=invsolve.Gaussian(0.1), strategy="tv", **given)
    assert str(caught.value) == said


WRITTEN = [(given, said) for given, said in WRONG if all(type(v) in (int, str) for v in given.values())]
WRITTEN = [(given, said) for given, said in WRITTEN if not {"device", "deterministic", "sampels"} & set(given)]


@pytest.mark.parametrize(("given", "said"), WRITTEN, ids=lambda value: str(value)[:24])
def test_the_command_says_of_a_wrong_value_what_python_says(
    given: dict[str, Any], said: str, cli: Callable[..., tuple[int, str, str]]
) -> None:
    ((name, value),) = given.items()
    code, _, err = cli("reconstruct", "scan.h5", "-o", "out.h5", f"--{name.replace('_', '-')}", value)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    if name != "noise_correlation":  # text where a number is read: the command line's own complaint comes first
        assert err.strip() == f"invsolve: {said}"


def test_whole_numbers_of_numpy_and_names_of_torch_are_kept_plain() -> None:
    options = Options(
        samples=np.int64(3),  # type: ignore[arg-type]
        noise_correlation=np.float32(0.5),  # type: ignore[arg-type]
        device=torch.device("cuda", 1),
        dtype=torch.float64,
        scale="-1000:1000",
    )
    assert (options.samples, type(options.samples)) == (3, int)
    assert (options.device, options.dtype, options.scale) == ("cuda:1", "float64", (-1000.0, 1000.0))
    json.dumps(options.record())
    assert Options(noise_correlation=math.inf).record()["noise_correlation"] == "infinite"


class Scatter(Strategy):
    """Writes into a tensor by indices, for which torch has no deterministic implementation."""

    needs = ()
    draws = False

    def schedule(self, problem: invsolve.Problem) -> Tensor:
        return torch.tensor([1.0, 0.0])

    def init(self, problem: invsolve.Problem, rng: invsolve.ChainRandom) -> State:
        return {"x": torch.zeros(problem.batch, *problem.image_shape)}

    def step(
        self, problem: invsolve.Problem, state: State, sigma: float, sigma_next: float, rng: invsolve.ChainRandom
    ) -> State:
        SEEN.append(torch.get_deterministic_debug_mode())
        if self.unordered:
            state["x"].put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return state

    def __init__(self, unordered: bool) -> None:
        self.unordered = unordered


SEEN: list[int] = []


@pytest.mark.discrepant
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("unordered", [False, True])
def test_deterministic_algorithms_hold_for_the_run_and_no_longer(
    before: int, unordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    y, noise = torch.ones(1, 1, 4, 4), invsolve.Gaussian(0.1)
    SEEN.clear()
    torch.set_deterministic_debug_mode(before)
    try:
        run: dict[str, Any] = {"noise": noise, "strategy": Scatter(unordered), "progress": False}
        if unordered:
            with pytest.raises(invsolve.UserError, match=r"deterministic: put_ .*leave the option out") as caught:
                invsolve.reconstruct(y, invsolve.operator("blur", sigma=1.0), **run, deterministic=True)
            assert "\n" not in str(caught.value)
        else:
            result = invsolve.reconstruct(y, invsolve.operator("blur", sigma=1.0), **run, deterministic=True)
            assert result.provenance["deterministic"] is True
        assert torch.get_deterministic_debug_mode() == before
        assert torch.backends.cudnn.benchmark
        assert SEEN == [2]
        # Without the option the caller's setting stands.
        invsolve.reconstruct(y, invsolve.operator("blur", sigma=1.0), **run | {"strategy": Scatter(False)})
        assert [2, before] == SEEN
    finally:
        torch.set_deterministic_debug_mode(0)


def test_the_last_of_several_deterministic_runs_puts_the_setting_back() -> None:
    inside, leave = threading.Event(), threading.Event()

    def run() -> None:
        with deterministic(True):
            inside.set()
            leave.wait(60)

    other_run = threading.Thread(target=run)
    with deterministic(True):
        other_run.start()
        assert inside.wait(60)
    assert torch.are_deterministic_algorithms_enabled(), "the other run still needs it"
    leave.set()
    other_run.join()
    assert not torch.are_deterministic_algorithms_enabled()
