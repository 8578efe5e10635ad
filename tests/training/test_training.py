"""Training: from a file of images to a prior that knows itself, through kills, bad data and several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import invsolve
from invsolve.errors import Interrupted, UserError
from invsolve.testing import check_prior
from invsolve.training.job import train_file
from invsolve.training.settings import Request, make_settings
from tests.support.stops import stop_at

TINY: dict[str, Any] = {"width": 8, "levels": 2, "batch_size": 4, "log_every": 5, "validate_every": 20, "lr": 5e-3}


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    """Images (N, C, *spatial) of random low waves, in 0 .. 200."""
    rng = np.random.default_rng(seed)
    x = np.zeros(shape)
    for axis in range(2, len(shape)):
        phase = rng.uniform(0, 6, (*shape[:2], *(1,) * (len(shape) - 2)))
        place = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - 1 - axis)) / shape[axis]
        x = x + np.sin(2 * np.pi * place + phase)
    return (100 + 100 * x / (len(shape) - 2)).astype("f4")


def write(path: Path, axes: str | None = None, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        if axes:
            file["x"].attrs["axes"] = axes
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures.h5", x=smooth(24, 1, 16, 16))


@pytest.fixture
def signals(tmp_path: Path) -> Path:
    return write(tmp_path / "signals.h5", "item channel position", x=smooth(24, 1, 32))


def options(**settings: Any) -> list[str]:
    return [part for key, value in (TINY | settings).items() for part in ("--set", f"{key}={value}")]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{out}.curve.jsonl").read_text().splitlines()]


def train(path: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return train_file(Request(path, out, make_settings(TINY | settings), "cpu"))


def test_a_training_begins_with_the_weights_of_another_prior(pictures: Path, tmp_path: Path) -> None:
    first, second, complex_ = (tmp_path / f"{n}.safetensors" for n in ("first", "second", "complex"))
    train(pictures, first, steps=60)
    train(pictures, second, steps=5, lr=1e-4, start=str(first))
    # After five small steps it is as good as the first, which random weights are not.
    (before,) = [x["validation_loss"] for x in lines(first) if "validation_loss" in x][-1:]
    (after,) = [x["validation_loss"] for x in lines(second) if "validation_loss" in x][-1:]
    assert after < 1.1 * before
    assert "start" in invsolve.load_prior(second).header["training"]["data"]
    # Another number of channels costs the first and last layer only.
    two = write(tmp_path / "two.h5", x=np.concatenate([smooth(24, 1, 16, 16), smooth(24, 1, 16, 16, seed=1)], 1))
    train(two, complex_, steps=5, start=str(first))
    with pytest.raises(UserError, match=r"only \d+% of the network's weights fit"):
        train(pictures, tmp_path / "other.safetensors", steps=5, start=str(first), width=16)


def test_from_images_to_a_prior(pictures: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    out = tmp_path / "p.safetensors"
    code, printed, err = cli(
        "train", pictures, "-o", out, *options(steps=60, unit="a.u.", flip=[0, 1], validate_every=10), "--json"
    )
    assert code == 0, err
    assert "\r" not in err
    result = json.loads(printed)
    losses = [line["loss"] for line in lines(out) if "loss" in line]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    checked = [line["validation_loss"] for line in lines(out) if "validation_loss" in line]
    assert checked[-1] < checked[0]
    assert result["images"] == {"train": 22, "validation": 2}
    assert Path(result["sheet"]).read_bytes().startswith(b"\x89PNG")
    beside = {f"p.safetensors{end}" for end in ("", ".curve.jsonl", ".samples.png")}
    assert {p.name for p in tmp_path.iterdir()} == {"pictures.h5", *beside}

    prior: Any = invsolve.load_prior(out)
    assert prior.unit == "a.u."
    assert prior.data_range == tuple(result["data_range"])
    assert prior.error_curve == result["error_curve"]
    sigma, mse = (np.array(prior.error_curve[k]) for k in ("sigma", "mse"))
    assert len(sigma) == 16
    np.testing.assert_allclose([sigma[0], sigma[-1]], [prior.sigma_min, prior.sigma_max])
    # Doing nothing leaves sigma squared; a denoiser that has learnt anything leaves less where the noise is strong.
    assert (mse[sigma > 0.5] < sigma[sigma > 0.5] ** 2).all()
    assert prior.header["training"]["data"]["split"]["train"] == 22
    assert prior.header["training"]["command"].startswith("invsolve")
    report = check_prior(prior)
    assert report, str(report)

    code, printed, _ = cli("prior", "show", out)
    assert code == 0
    assert "a.u." in printed
    assert "mean squared error" in printed

    again = tmp_path / "again.safetensors"
    code, printed, err = cli("prior", "measure", out, pictures, "-o", again, "--batch-size", 4)
    assert code == 0, err
    assert "2 images that it was not trained on" in err
    np.testing.assert_allclose(invsolve.load_prior(again).error_curve["mse"], mse, rtol=1e-5)


@pytest.mark.slow
def test_killed_twice_the_loss_curve_is_that_of_the_unkilled_run(
    signals: Path, tmp_path: Path, cli_process: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many threads as this process has (conftest.py): sums in another order would differ in the last digit.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    settings: dict[str, Any] = {"steps": 80, "immiscible": 2, "dropout": 0.2, "gain": 0.2}
    train(signals, whole, **settings)
    command = ["train", signals, "-o", broken, *options(**settings), "--snapshot-steps", 10, "--device", "cpu"]
    for step in (20, 40):
        process = cli_process(
            *command, environment=stop_at("training saved", signal.SIGKILL, when=f"state['step'] == {step}")
        )
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        assert not broken.exists()
    process = cli_process(*command, environment=stop_at("training saved", signal.SIGTERM, when="state['step'] == 60"))
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "run the same command to go on" in err
    assert "continuing after step" in err
    assert "Traceback" not in err
    train(signals, broken, **settings)
    assert Path(f"{broken}.curve.jsonl").read_bytes() == Path(f"{whole}.curve.jsonl").read_bytes()
    mine, theirs = load_file(broken), load_file(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not list(tmp_path.glob("*.partial.pt*"))


def test_stopped_and_resumed_in_two_dimensions(pictures: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    settings = {"steps": 24, "crop": 12, "rotate": 5, "zoom": 0.1, "stable_target": 3, "precision": "bf16"}
    train(pictures, whole, **settings)
    request = Request(pictures, broken, make_settings(TINY | settings), "cpu")
    asked = iter([False] * 12 + [True])
    with pytest.raises(Interrupted, match="after step 13 of 24"):
        train_file(request, should_stop=lambda: next(asked))
    train_file(request)
    assert lines(broken) == lines(whole)
    mine, theirs = load_file(broken), load_file(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_another_configuration_or_a_bad_snapshot_is_refused(
    signals: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "p.safetensors"
    partial = Path(f"{out}.partial.pt")
    asked = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        train_file(Request(signals, out, make_settings(TINY | {"steps": 20})), should_stop=lambda: next(asked))
    kept = partial.read_bytes()
    code, _, err = cli("train", signals, "-o", out, *options(steps=20, lr=1e-3))
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert "lr 0.005 -> 0.001" in last
    assert "--overwrite" in last
    assert partial.read_bytes() == kept
    for bad in (kept[: len(kept) // 2], b"", b"nonsense"):
        partial.write_bytes(bad)
        code, _, err = cli("train", signals, "-o", out, *options(steps=20))
        assert code == 2
        assert "no snapshot of a training" in err.strip().splitlines()[-1]
        assert "Traceback" not in err
    assert not out.exists()
    assert cli("train", signals, "-o", out, *options(steps=20), "--overwrite")[0] == 0
    code, _, err = cli("train", signals, "-o", out, *options(steps=20))
    assert code == 2
    assert "--overwrite" in err


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_snapshot_that_would_run_code_is_refused(
    signals: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"format": 1, "config": Trap(sprung)}, tmp_path / "p.safetensors.partial.pt")
    code, _, err = cli("train", signals, "-o", tmp_path / "p.safetensors", *options(steps=20))
    assert code == 2
    assert "no snapshot" in err
    assert not sprung.exists()


def test_the_output_is_checked_first(pictures: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    for out, text in ((tmp_path / "p.pt", ".safetensors"), (tmp_path / "no" / "p.safetensors", "does not exist")):
        code, _, err = cli("train", pictures, "-o", out)
        assert code == 2
        assert text in err
        assert len(err.strip().splitlines()) == 1


def complex_images() -> np.ndarray:
    angle = smooth(8, 1, 16, 16, seed=1) / 50
    return (smooth(8, 1, 16, 16) * np.exp(1j * angle)).astype("c8")


@pytest.mark.parametrize(
    ("array", "given", "shape"),
    [
        (complex_images(), {}, (2, None, None)),
        (smooth(8, 2, 16, 16), {"flip": [1]}, (2, None, None)),
        (smooth(8, 3, 16, 16).transpose(0, 2, 3, 1), {"axes": "item:row:column:channel"}, (3, None, None)),
        (smooth(8, 1, 33), {"axes": "item:channel:position", "crop": 20}, (1, None)),
        (smooth(4, 1, 8, 10, 9), {"rotate": 5, "flip": [0]}, (1, None, None, None)),
        (smooth(4, 1, 8, 12, 12), {"slice_axis": 0}, (1, None, None)),
        (smooth(1, 1, 12, 8, 12)[0, 0].astype("u1"), {"slice_axis": 1}, (1, None, None)),
    ],
    ids=["complex", "two-channel", "channels-last", "1-D", "3-D", "volumes", "volume"],
)
def test_images_of_every_kind(
    array: np.ndarray, given: dict[str, Any], shape: tuple[int | None, ...], tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    result = train(write(tmp_path / "x.h5", x=array), out, steps=4, **given)
    assert np.isfinite([result["loss"], result["validation_loss"], *result["error_curve"]["mse"]]).all()
    prior = invsolve.load_prior(out)
    assert prior.event_shape == shape
    report = check_prior(prior, tuple(10 if s is None else s for s in shape))
    assert report, str(report)


def test_a_foreign_prior_gets_its_curve_beside_it(
    pictures: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    weights = Path(invsolve.__file__).parents[1] / "plugins" / "priors" / "weights" / "natural.safetensors"
    if not weights.exists():
        pytest.skip("the bundled weights are elsewhere")
    path = write(tmp_path / "unit.h5", x=smooth(6, 1, 16, 16) / 200)
    copy = shutil.copy(weights, tmp_path / "m.safetensors")
    code, printed, err = cli("prior", "measure", copy, path, "--json")
    assert code == 0, err
    curve = json.loads(printed)["error_curve"]
    assert Path(f"{copy}.error_curve.json").exists()
    assert invsolve.load_prior(copy).error_curve == curve
    Path(f"{copy}.error_curve.json").write_text("{}")
    with pytest.raises(UserError, match="no error curve"):
        invsolve.load_prior(copy)
    code, _, err = cli("prior", "measure", "gaussian-field", pictures, "-o", tmp_path / "g.safetensors")
    assert code == 2
    assert "does not write" in err
    code, _, err = cli("prior", "measure", "natural", pictures, "-o", tmp_path / "g.json")
    assert code == 2
    assert "outside the prior's range" in err


def test_the_error_curve_of_a_gaussian_is_exact(tmp_path: Path) -> None:
    """For white Gaussian images of variance v the least possible error is v s^2 / (v + s^2)."""
    from invsolve.contracts.prior import Prior
    from invsolve.training.error_curve import error_curve

    class White(Prior):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            s = sigma.view(-1, 1, 1, 1) ** 2
            return x * 0.25 / (0.25 + s)

    images = 0.5 * torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    curve = error_curve(White(), images, batch_size=5)
    s = np.square(curve["sigma"])
    np.testing.assert_allclose(curve["mse"], 0.25 * s / (0.25 + s), rtol=0.05)
    np.testing.assert_allclose(curve["mse"], error_curve(White(), images, batch_size=16)["mse"], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_share_a_training(signals: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "invsolve", "train", str(signals), "-o", str(out), *options(steps=60, dropout=0), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu"], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 60
    assert done.stderr.count("network range") == 1
    losses = [line["loss"] for line in lines(out) if "loss" in line]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    # The batches are those of one process, so the losses agree to rounding as long as that does not grow.
    train(signals, tmp_path / "alone.safetensors", steps=60, dropout=0)
    alone = [line["loss"] for line in lines(tmp_path / "alone.safetensors") if "loss" in line]
    np.testing.assert_allclose(losses, alone, rtol=1e-3)
