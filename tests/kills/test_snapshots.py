"""Going on in the middle of a batch: a killed run ends with the result of an unkilled one."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve import api
from invsolve.datasets.hdf5 import write_scan
from invsolve.engine.options import Options
from invsolve.engine.run import Run
from invsolve.engine.snapshot import Sample, Snapshot
from invsolve.errors import Interrupted
from invsolve.jobs.snapshot_file import SnapshotFile
from invsolve.numerics.random import ChainRandom
from tests.support.stops import stop_at
from tests.support.types import Cli, CliProcess

PLUGIN = '''
"""A Gaussian prior that asks its process to end in the middle, where a file `stop` lies beside it."""
import os
import signal
from pathlib import Path

import invsolve
from invsolve import registry


class Small(registry.find("prior", "gaussian-field")):
    """Sixteen pixels a side."""

    examples = ({},)

    def __init__(self):
        super().__init__(size=16, std=0.3)

    calls = 0

    def denoise(self, x, sigma):
        self.calls += 1
        if self.calls == 90 and Path(__file__).with_name("stop").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return super().denoise(x, sigma)


@invsolve.hookimpl
def invsolve_priors():
    return {"small": Small}
'''


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    (tmp_path / "small.py").write_text(PLUGIN)
    operator = invsolve.operator("ct", image_size=16, angles=6)
    prior = invsolve.load_prior("gaussian-field", size=16, std=0.3)
    truth = prior.sample(ChainRandom(3, [(i, 0) for i in range(4)]), torch.zeros(1))
    write_scan(
        tmp_path / "scan.h5",
        invsolve.simulate(truth, operator, invsolve.Gaussian(0.05)),
        operator,
        invsolve.Gaussian(0.05),
    )
    return tmp_path / "scan.h5"


def options(scan: Path, out: Path, strategy: str, *, batch: int = 8, every: float = 0.0) -> list[object]:
    return [
        *("reconstruct", scan, "-o", out, "--prior", "small", "--plugin", scan.with_name("small.py"), "--samples", 2),
        *("--strategy", strategy, "--set", "steps=60", "--batch-size", batch, "--snapshot-every", every),
    ]


def samples(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        assert file["done"][:].all()
        return file["samples"][:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "reached"),
    # In the middle of the second sample of a volume; in the middle of a batch of slices.
    [("dds-3d", "waiting"), ("dps-fitted", "snapshot.step > 5")],
    ids=["dds-3d", "dps-fitted"],
)
def test_killed_in_the_middle_it_ends_the_same(
    strategy: str, reached: str, scan: Path, tmp_path: Path, cli: Cli, cli_process: CliProcess
) -> None:
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    assert cli(*options(scan, whole, strategy))[0] == 0
    process = cli_process(
        *options(scan, broken, strategy), environment=stop_at("snapshot saved", signal.SIGKILL, when=reached)
    )
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert not broken.exists()
    code, _, err = cli(*options(scan, broken, strategy))
    assert code == 0, err
    assert "after step" in err
    # The same bits, because the noise is keyed by step and the state is kept whole.
    np.testing.assert_array_equal(samples(broken), samples(whole))
    assert sorted(p.name for p in tmp_path.glob("broken*")) == ["broken.h5"]


def test_sigterm_saves_where_it_stands_and_another_batch_size_goes_on(
    scan: Path, tmp_path: Path, cli: Cli, cli_process: CliProcess
) -> None:
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    assert cli(*options(scan, whole, "dds-3d", every=1000))[0] == 0
    # It has the signal in the middle of the second sample.
    scan.with_name("stop").touch()
    process = cli_process(*options(scan, broken, "dds-3d", every=1000))
    _, err = process.communicate()
    scan.with_name("stop").unlink()
    assert process.returncode == 130, err
    assert Path(f"{broken}.partial.state").exists()
    code, _, err = cli(*options(scan, broken, "dds-3d", batch=3, every=1000))
    assert code == 0, err
    assert "after step" in err
    np.testing.assert_allclose(samples(broken), samples(whole), atol=2e-5)


def test_a_short_run_writes_no_snapshot(scan: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SnapshotFile, "save", lambda *_: pytest.fail("saved"))
    assert cli(*options(scan, tmp_path / "out.h5", "dds-3d", every=3600))[0] == 0


def plan() -> Run:
    operator = invsolve.operator("ct", image_size=16, angles=6)
    prior = invsolve.load_prior("gaussian-field", size=16, std=0.3)
    y = operator(prior.sample(ChainRandom(3, [(i, 0) for i in range(3)]), torch.zeros(1)))
    measurement = invsolve.Measurement(y, operator, invsolve.Gaussian(0.05))
    return api.plan(measurement, prior, invsolve.strategy("dds-3d", steps=10), Options(samples=3, batch_size=2))


@pytest.mark.parametrize("stop", [1, 9, 10, 11, 25])
def test_every_step_can_be_gone_on_from(stop: int, tmp_path: Path) -> None:
    """Stopped after so many steps of three samples of ten, then finished: bits and counted costs are the unstopped run's."""
    whole, broken = api.Memory(3), api.Memory(3)
    plan().execute(whole)
    run, steps = plan(), iter(range(1, 100))
    run.keeper = SnapshotFile(tmp_path / "out.h5", "config", every=1000)
    run.should_stop = lambda: next(steps) == stop
    with pytest.raises(Interrupted):
        run.execute(broken)
    run = plan()
    run.keeper = SnapshotFile(tmp_path / "out.h5", "config", every=1000)
    run.execute(broken)
    torch.testing.assert_close(broken.stack("samples"), whole.stack("samples"), atol=0, rtol=0)
    torch.testing.assert_close(broken.stack("residual"), whole.stack("residual"), atol=0, rtol=0)
    for mine, theirs in zip(broken.facts, whole.facts, strict=True):
        assert mine["network_calls"] == theirs["network_calls"]
        assert mine["operator_calls"] == pytest.approx(theirs["operator_calls"])


def test_the_linear_reconstruction_of_the_first_sample_is_kept(tmp_path: Path) -> None:
    whole, broken = api.Memory(3), api.Memory(3)
    run = plan()
    run.linear_too = True
    run.execute(whole)
    # In the middle of the second sample; the first, which came with it, waits.
    for stop, sink in ((15, api.Memory(3)), (0, broken)):
        run, steps = plan(), iter(range(1, 100))
        run.linear_too = True
        run.keeper = SnapshotFile(tmp_path / "out.h5", "config", every=1000)
        run.should_stop = lambda steps=steps, stop=stop: next(steps) == stop
        with pytest.raises(Interrupted) if stop else nullcontext():
            run.execute(sink)
    wanted = torch.stack([run.problem([(item, 0)]).baseline()[0] for item in range(3)])
    torch.testing.assert_close(whole.stack("linear"), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(broken.stack("linear"), whole.stack("linear"), atol=0, rtol=0)


class SlowSink(api.Memory):
    """A sink that takes a while to write."""

    def write(self, item: int, arrays: Mapping[str, torch.Tensor], facts: Mapping[str, float]) -> None:
        time.sleep(0.05)
        super().write(item, arrays, facts)


class Always(SnapshotFile):
    """Saves after every step, and notes what would be lost by a kill right then."""

    def __init__(self, output: Path, sink: api.Memory) -> None:
        super().__init__(output, "config")
        self.sink, self.lost, self.saves = sink, set[int](), 0

    def due(self) -> bool:
        return True

    def save(self, snapshot: Snapshot, waiting: Mapping[int, Sequence[Sample]]) -> None:
        self.saves += 1
        begun = {item for item, _ in snapshot.chains}
        self.lost |= {i for i in range(min(begun)) if not self.sink.is_done(i) and i not in waiting}


def test_nothing_is_between_the_snapshot_and_the_file(tmp_path: Path) -> None:
    """Items that are queued to be written are in neither; a snapshot waits for them."""
    operator = invsolve.operator("ct", image_size=16, angles=6)
    prior = invsolve.load_prior("gaussian-field", size=16, std=0.3)
    measurement = invsolve.Measurement(torch.zeros(6, *operator.measurement_shape((1, 16, 16))), operator)
    measurement.noise = invsolve.Gaussian(0.05)
    run = api.plan(measurement, prior, invsolve.strategy("dps-fitted", steps=2), Options(samples=2, batch_size=2))
    sink = SlowSink(6)
    run.keeper = keeper = Always(tmp_path / "out.h5", sink)
    run.execute(sink)
    assert keeper.saves >= 12
    assert not keeper.lost


def test_a_snapshot_of_something_else_is_not_gone_on_from(tmp_path: Path) -> None:
    snapshot = Snapshot(
        [(0, 0)], 3, {"x": torch.ones(1, 2)}, torch.zeros(1, 4), torch.ones(1, dtype=torch.int32), 1.5, {"network": 7}
    )
    keeper = SnapshotFile(tmp_path / "out.h5", "config")
    assert keeper.restore() == (None, {})
    keeper.save(snapshot, {4: [(0, {"image": torch.ones(2)}, {"seconds": 1.0})]})
    checkpoint, waiting = keeper.restore()
    assert checkpoint is not None
    assert checkpoint.unconverged.tolist() == [1]
    assert (checkpoint.chains, checkpoint.step, checkpoint.calls) == ([(0, 0)], 3, {"network": 7})
    assert torch.equal(waiting[4][0][1]["image"], torch.ones(2))
    assert SnapshotFile(tmp_path / "out.h5", "another").restore() == (None, {})
    keeper.path.write_bytes(keeper.path.read_bytes()[:100])
    assert keeper.restore() == (None, {})
    keeper.remove()
    assert not os.listdir(tmp_path)
