"""What files say of themselves, wrongly: result files, headers of priors, pipelines; one line that names the entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve import Pipeline
from invsolve.datasets.hdf5 import join_results, read_result
from invsolve.errors import UserError
from invsolve.plugins.priors.unet import HEADER
from tests.priors.test_prior_files import ARCHITECTURE, CONFIG, HEADER_FACTS, make_network, save
from tests.support.pipelines import TEXT, write
from tests.support.results import CONFIG as RECORD
from tests.support.results import write_result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_result(tmp_path_factory.mktemp("result") / "r.h5", 2, (1, 8, 8), 2)


def replaced(name: str, value: Any) -> Callable[[h5py.File], None]:
    def harm(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return harm


def said(**record: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__("config", json.dumps(RECORD | record))


def long_done(file: h5py.File) -> None:
    del file["done"]
    file.create_dataset("done", (2**60,), bool, chunks=(1024,))


@pytest.mark.parametrize(
    ("harm", "entry"),
    [
        (replaced("done", np.array([1.0, 1.0])), "'done' (2,) of float64: expected one boolean per item"),
        # As indices these picked the second item twice, without a word.
        (replaced("done", np.array([1, 1])), "'done' (2,) of int64: expected one boolean per item"),
        (replaced("done", True), "'done' () of bool: expected one boolean per item"),
        (replaced("done", np.ones(5, bool)), "expected one whole number for each of 5 items"),
        (replaced("items", np.array([0.5, 1.5])), "'items' (2,) of float64: expected one whole number"),
        (replaced("items", np.array([0, 0])), "'items' does not count up by one"),
        (replaced("items", np.array([-5, -4])), "'items' does not count up by one"),
        (replaced("items", np.array([2**60, 2**60 + 1])), "input_items is 2, expected"),
        (lambda file: file.attrs.__setitem__("input_items", float("nan")), "input_items is nan"),
        (lambda file: file.attrs.__setitem__("input_items", "many"), "input_items is many"),
        (replaced("mean", np.zeros((2, 16))), "'mean' (2, 16): expected (items, channels, *spatial)"),
        (replaced("std", np.zeros((2, 1, 4, 4))), "'std' (2, 1, 4, 4): its images do not fit those of 'mean'"),
        (replaced("std", np.zeros((2, 1, 8, 8), "c8")), "'std' (2, 1, 8, 8): holds complex64, expected real"),
        (replaced("samples", np.zeros((2, 0, 1, 8, 8))), "'samples' (2, 0, 1, 8, 8): expected (items, samples"),
        (replaced("truth", np.zeros((2, 3, 8, 8))), "'truth' (2, 3, 8, 8): its images do not fit"),
        (replaced("diagnostics/seconds", np.zeros(1)), "'/diagnostics/seconds' (1,)"),
        (replaced("diagnostics/discrepancy", np.zeros((2, 5))), "'/diagnostics/discrepancy' (2, 5): expected 2 axes"),
        (replaced("diagnostics", np.zeros(2)), "'diagnostics' is a dataset, expected a group"),
        (lambda file: file.create_group("diagnostics/deep"), "'diagnostics/deep' is a group"),
        (long_done, "no file does"),
        (said(strategy=3), "says strategy = 3, expected an object"),
        (said(notes={"a": 1}), 'says notes = {"a": 1}, expected a list'),
        (said(prior={"name": [1]}), "says prior = "),
        (said(operator={"parameters": 5}), "says operator = "),
        (lambda file: file.attrs.__setitem__("config", "[1]"), "(config) is no JSON object"),
        (lambda file: file.__setitem__("config", "[" * 100_000), "(config) is no JSON object"),
        (lambda file: file["mean"].__setitem__(1, np.nan), "'mean' has NaN or infinite values in row 1"),
    ],
)
def test_result_files(harm: Callable[[h5py.File], None], entry: str, result: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(result, tmp_path / "r.h5"))
    with h5py.File(path, "a") as file:
        harm(file)
    with pytest.raises(UserError) as caught:
        read_result(path).mean[0:2]
    assert str(caught.value).startswith(f"{path}: ")
    assert entry in str(caught.value)
    if "(config)" in entry or "says" in entry:
        return
    with pytest.raises(UserError) as caught:
        join_results(tmp_path / "joined.h5", [path])
    assert str(caught.value).startswith(f"{path}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.h5"]


def test_parts_that_are_far_apart_are_said_to_miss_what_is_between(result: Path, tmp_path: Path) -> None:
    for k, first in enumerate((0, 2**50)):
        path = shutil.copy(result, tmp_path / f"{k}.h5")
        with h5py.File(path, "a") as file:
            file["items"][:] = [first, first + 1]
            file.attrs["input_items"] = 2**51
    with pytest.raises(UserError, match=f"items 2:{2**50} and more are in none of the parts"):
        join_results(tmp_path / "joined.h5", [tmp_path / "0.h5", tmp_path / "1.h5"])


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: value.contiguous() for name, value in make_network(ARCHITECTURE).state_dict().items()}


def net(**changes: Any) -> dict[str, Any]:
    return {"class": "UNet2DModel", "config": CONFIG | changes}


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("sigma_min", 50.0, "sigma_min 50 is not below sigma_max 30"),
        ("sigma_min", float("nan"), "sigma_min is nan, expected a number > 0"),
        ("sigma_max", None, "sigma_max is None, expected a number > 0"),
        ("sigma_max", float("inf"), "sigma_max is inf"),
        ("sigma_data", 0, "sigma_data is 0"),
        ("noise_label_scale", "x", "noise_label_scale is 'x', expected a number"),
        ("event_shape", [0, None, None], "event_shape is [0, None, None]"),
        ("event_shape", "ab", "event_shape is 'ab'"),
        ("data_range", [1, 0], "data_range is [1, 0], expected null, or two numbers [low, high]"),
        ("data_range", [1, 2, 3], "data_range is [1, 2, 3]"),
        ("unit", 7, "unit is 7, expected text"),
        ("error_curve", {"sigma": [1], "mse": [1, 2]}, "error_curve is"),
        ("format", 99, "is of format 99, and this version reads 1"),
        ("dtype", "int8", "dtype is 'int8', expected one of float32"),
        ("architecture", {"class": "os.system"}, "the header says 'edm' of 'os.system'"),
        ("architecture", {"class": "UNet2DModel", "config": "x"}, "architecture.config is 'x'"),
        ("architecture", net(layers_per_block=10**7), "layers_per_block is 1e+07, but its 102 weights of 17305"),
        ("architecture", net(block_out_channels=[10**9, 8]), "block_out_channels is 1e+09"),
        ("architecture", net(layers_per_block=-1), "left over, first"),
        ("architecture", net(norm_num_groups=3), "no network can be made of its settings (ValueError: "),
        ("architecture", net(depth=3), "no network can be made of its settings (TypeError: "),
    ],
)
def test_headers_of_priors(
    entry: str, value: Any, expected: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "prior.safetensors"
    save(path, weights, HEADER_FACTS | {entry: value}, torch.float32)
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1]", "null", '{"sigma_min":' + "9" * 5000 + "}"])
def test_headers_that_are_no_objects(text: str, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from safetensors.torch import save as serialise

    path = tmp_path / "prior.safetensors"
    path.write_bytes(serialise(weights, metadata={HEADER: text}))
    with pytest.raises(UserError, match="its header is no JSON object"):
        invsolve.load_prior(path)


def test_weights_that_are_not_finite(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    save(path, weights | {"conv_in.bias": torch.full((8,), torch.nan)}, HEADER_FACTS, torch.float32)
    with pytest.raises(UserError, match=r"weights 'conv_in.bias' are not finite"):
        invsolve.load_prior(path)
    save(path, weights, HEADER_FACTS, torch.float32)
    Path(f"{path}.error_curve.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no error curve"):
        invsolve.load_prior(path)


def doubling(first: str, times: int) -> str:
    """Variables of which each is the one before, twice."""
    lines = [f"a0 = {first}", *(f'a{k} = "${{a{k - 1}}}${{a{k - 1}}}"' for k in range(1, times))]
    return "\n".join([*lines, f'views = "${{a{times - 1}}}"'])


LISTS = "\n".join(
    ["b0 = [1, 1]", *(f'b{k} = ["${{b{k - 1}}}", "${{b{k - 1}}}"]' for k in range(1, 40)), 'views = "${b39}"']
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT.replace("views = 6", doubling('"x"', 60)), "stands for more than 1000000 values and letters"),
        (TEXT.replace("views = 6", LISTS), "stands for more than 1000000 values and letters"),
        ("a = " + "[" * 100_000, "values are nested too deep"),
        (f"[{'a.' * 100_000}a]\n", "nests names more than 64 deep"),
        (f"{'a.' * 100_000}a = 1\n", "nests names more than 64 deep"),
        ("#" * 2**21, "has 2097152 bytes"),
    ],
)
def test_pipelines(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, text.replace('plugins = ["./slow.py"]\n', ""))
    with pytest.raises(UserError, match=expected):
        Pipeline.load(path)


def test_sweeps_of_steps_that_have_nothing_in_common_are_not_multiplied(tmp_path: Path) -> None:
    scan = '[steps.s{}]\ntype = "simulate"\ninput = "truth"\noperator = "blur"\nset = {{sigma = {{sweep = [{}]}}}}\n'
    values = ", ".join(f"{k}.5" for k in range(10))
    head = '[steps.truth]\ntype = "load"\npath = "truth.h5"\n'
    pipeline = Pipeline.load(write(tmp_path, head + "\n".join(scan.format(k, values) for k in range(9))))
    assert len(pipeline.jobs()) == 91
    with pytest.raises(UserError, match="have 1000000000 combinations"):
        _ = pipeline.points


def test_a_part_of_the_sweeps_may_be_named_more_than_once(tmp_path: Path) -> None:
    text = TEXT.replace('plugins = ["./slow.py"]\n', "").replace("views = 6", "views = {sweep = [6, 7, 8]}")
    pipeline = Pipeline.load(write(tmp_path, text.replace('prior = "slow"', 'prior = "gaussian-field"')))
    both = pipeline.jobs(["views=6", "views=8"])
    assert [job.branch for job in both if job.name == "scan"] == ["views=6", "views=8"]
    assert [job for job in pipeline.jobs() if job in both] == list(both)
    with pytest.raises(UserError, match="names views twice"):
        pipeline.jobs("views=6,views=8")
