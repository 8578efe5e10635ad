"""The caller's objects stay his: what is handed to a run is afterwards as it was, and several threads may share it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import invsolve
from invsolve.contracts.module import Module, placed
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.problem import Calls, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.views import real_view
from invsolve.engine.metering import metered

SIZE = 8
#: A few steps of a sampler fit no data, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::invsolve.api.discrepancy.DiscrepancyWarning")


class Net(nn.Module):
    """A small network with weights, a buffer, and dropout, which would make it random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("gain", torch.tensor(0.9))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.gain * x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + 0.01 * self.drop(self.layer(x))


def network() -> invsolve.Prior:
    """A prior around a network that its owner is still training."""
    torch.manual_seed(0)
    prior = invsolve.prior_from(
        Net(), "denoiser", event_shape=(1, None, None), label="sigma", sigma_min=0.02, sigma_max=10
    )
    prior.net.train()
    return prior


def facts(module: nn.Module) -> list[object]:
    """Device, dtype, gradient, version and identity of each tensor, and the mode of each module."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    each = [(n, id(t), t.data_ptr(), t.device, t.dtype, t.requires_grad, t._version) for n, t in tensors]
    own = [(n, m.training, sorted(k for k in vars(m) if k not in ("_remembered",))) for n, m in module.named_modules()]
    return [each, own]


OPERATORS: dict[str, dict[str, Any]] = {
    "inpainting": {"fraction": 0.5, "image_size": SIZE},
    "blur": {"sigma": 0.8, "boundary": "zero"},
    "ct": {"image_size": SIZE, "angles": 5},
}


@pytest.mark.parametrize("strategy", ["dps-fitted", "diffpir", "moment"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_run_leaves_operator_prior_and_data_as_they_were(name: str, strategy: str) -> None:
    operator, prior = invsolve.operator(name, **OPERATORS[name]), network()
    for buffer in operator.buffers():
        if buffer.is_floating_point():
            buffer.requires_grad_()
    y = operator(torch.rand(2, 1, SIZE, SIZE)).detach()
    measurement = invsolve.Measurement(y, operator, invsolve.Gaussian(0.05))
    before = [facts(operator), facts(prior), y.clone()]
    random = torch.get_rng_state()
    chosen = invsolve.strategy(strategy, steps=4)
    first = invsolve.reconstruct(measurement, prior=prior, strategy=chosen, scale=Scale(), dtype=torch.float64)
    assert [facts(operator), facts(prior)] == before[:2]
    assert torch.equal(y, before[2])  # type: ignore[arg-type]
    assert measurement.operator is operator
    assert torch.equal(torch.get_rng_state(), random)
    # The network ran in evaluation mode all the same: dropout would differ from run to run.
    again = invsolve.reconstruct(measurement, prior=prior, strategy=chosen, scale=Scale(), dtype=torch.float64)
    assert torch.equal(first.samples, again.samples)


def test_sampling_and_likelihood_leave_the_prior_as_it_was() -> None:
    prior = network()
    before = facts(prior)
    x = invsolve.sample(prior, 1, (1, SIZE, SIZE), steps=3)
    invsolve.log_likelihood(prior, x, steps=2)
    assert facts(prior) == before


def test_what_need_not_change_is_not_copied() -> None:
    prior = network().requires_grad_(False).eval()
    assert placed(prior, torch.device("cpu"), frozen=True) is prior
    learning = network()
    frozen = placed(learning, torch.device("cpu"), frozen=True)
    assert frozen is not learning
    # It shares the memory of the weights.
    pairs = list(zip(learning.parameters(), frozen.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() and a.requires_grad and not b.requires_grad for a, b in pairs)
    assert not any(m.training for m in frozen.modules())


def test_a_copy_goes_to_the_device_and_the_original_stays() -> None:
    operator = invsolve.operator("mri", coil_maps=torch.randn(2, SIZE, SIZE, 2))
    moved = placed(operator, torch.device("meta"))
    assert {b.device.type for b in moved.buffers()} == {"meta"}
    assert {b.device.type for b in operator.buffers()} == {"cpu"}
    assert moved.image_shape == operator.image_shape


def test_what_cannot_be_copied_is_refused_with_the_way_out() -> None:
    class Locked(Module):
        def __init__(self) -> None:
            self.lock, self.weight = threading.Lock(), nn.Parameter(torch.ones(2))

    with pytest.raises(invsolve.UserError, match=r"requires_grad_\(False\).eval\(\).to\('cpu'\)"):
        placed(Locked(), torch.device("cpu"), frozen=True)


def test_threads_that_share_an_operator_get_the_answers_and_counts_of_one() -> None:
    operator = invsolve.operator("blur", sigma=0.8, boundary="reflect")
    operator.image_shape = (1, 16, 16)
    prior = invsolve.load_prior("gaussian-field", size=16)
    noise = invsolve.Gaussian(0.1)
    y = invsolve.simulate(invsolve.sample(prior, 2, seed=0), operator, noise)
    chosen = invsolve.strategy("red-diff", steps=30)

    def job() -> invsolve.Reconstruction:
        return invsolve.reconstruct(y, operator, prior, noise=noise, strategy=chosen, samples=2, seed=5)

    alone, results = job(), []
    gate = threading.Barrier(4)

    def work() -> None:
        gate.wait()
        results.append(job())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert torch.equal(result.samples, alone.samples)
        for name in ("network_calls", "vjp_calls", "operator_calls"):
            assert result.diagnostics[name] == alone.diagnostics[name]
    assert not {"forward", "adjoint"} & set(vars(operator))


class Counted(LinearOperator):
    """y = 2 x seen through its own counters; the adjoint is derived from forward, which must not count twice."""

    image_shape = (1, 2, 2)

    def __init__(self, derived: bool) -> None:
        self.derived = derived

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y) if self.derived else 2 * y


@pytest.mark.parametrize("derived", [False, True])
def test_rows_are_counted_once_and_solves_count_their_passes(derived: bool) -> None:
    calls, inner = Calls(), Counted(derived)
    counting = metered(inner, calls)
    x = torch.ones(3, 1, 2, 2)
    counting(x), counting.adjoint(x), counting.normal(x)
    assert calls.counts() == {"network": 0, "vjp": 0, "forward": 6, "adjoint": 6}
    inner(x)
    assert calls.forward == 6
    # One product for the start and one for the only step that 4 x = b takes; and A'y.
    metered(0.5 * inner, calls).prox(torch.zeros_like(x), x, 1.0)
    assert calls.counts() == {"network": 0, "vjp": 0, "forward": 12, "adjoint": 15}


def test_what_is_remembered_is_no_cost_of_the_run() -> None:
    calls, operator = Calls(), Counted(False)
    counting = metered(operator, calls)
    assert counting.norm() == pytest.approx(2)
    counting(torch.ones(1, 1, 2, 2))
    assert (calls.forward, calls.adjoint) == (1, 0)


def test_solves_behind_a_view_count() -> None:
    maps = torch.randn(2, SIZE, SIZE, 2, generator=torch.Generator().manual_seed(0))
    operator = invsolve.operator("mri", coil_maps=maps, mask=[True, True, False, True] * (SIZE // 4))
    calls = Calls()
    view = metered(real_view(operator, 2), calls)
    assert isinstance(view, LinearOperator)
    z = torch.zeros(1, 2, SIZE, SIZE)
    ends: list[invsolve.Solution] = []
    view.prox(z, operator(torch.ones(1, 1, SIZE, SIZE, dtype=torch.complex64)), 0.1, invsolve.CG(told=ends.append))
    steps = int(ends[0].iterations)
    assert steps > 3
    assert (calls.forward, calls.adjoint) == (steps + 1, steps + 2)


class Hard(LinearOperator):
    """y = weights * x, whose condition asks for more steps than a solver is given."""

    def __init__(self) -> None:
        self.weights = torch.logspace(0, -2, SIZE**2).view(SIZE, SIZE)
        self.image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * x


def test_solves_that_do_not_converge_are_in_the_diagnostics(monkeypatch: pytest.MonkeyPatch) -> None:
    # As for an operator too large for its dense matrix.
    monkeypatch.setattr("invsolve.contracts.data_step.small", lambda *_: False)
    prior, noise = invsolve.load_prior("gaussian-field", size=SIZE), invsolve.Gaussian(1e-4)
    y = Hard()(invsolve.sample(prior, 2, seed=0))
    y[1] = 0

    def solved(operator: Operator, iterations: int) -> invsolve.Reconstruction:
        chosen = invsolve.strategy("diffpir", steps=6, iterations=iterations)
        return invsolve.reconstruct(y, operator, prior, noise=noise, strategy=chosen, samples=2, scale=Scale())

    def missed(operator: Operator, iterations: int) -> Tensor:
        counts: Tensor = solved(operator, iterations).diagnostics["inner_unconverged"]
        return counts

    stopped = solved(Hard(), 1)
    short = stopped.diagnostics["inner_unconverged"]
    (remark,) = stopped.diagnostics["remarks"]
    assert remark.startswith(f"{int(short.sum())} inner solves of 4 of 4 samples ended at their last iteration")
    assert remark.endswith("raise iterations, now 1")
    assert short.shape == (2, 2)
    assert bool((short >= 4).all() and (short <= 6).all())
    assert int(missed(Hard(), 500).sum()) == 0
    assert int(missed(invsolve.operator("inpainting", mask=torch.ones(SIZE, SIZE)), 1).sum()) == 0


def test_a_latent_prior_has_a_state_of_its_own_shape() -> None:
    class Latent(invsolve.Prior):
        """Its state is an image of half the size in four channels."""

        def state_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
            return (4, *(n // 2 for n in image_shape[1:]))

    operator = invsolve.operator("inpainting", fraction=0.5, image_size=SIZE)
    y = torch.zeros(3, 1, SIZE, SIZE)
    problem = make_problem(Latent(), operator, invsolve.Gaussian(0.1), y, (1, SIZE, SIZE), Scale())
    assert problem.state_shape == (4, 4, 4)
    assert problem.zeros().shape == (3, 4, 4, 4)
    # What the data say is still about images.
    assert problem.tikhonov(y, 0.1).shape == problem.blank().shape == (3, 1, SIZE, SIZE)
    plain = make_problem(
        invsolve.load_prior("gaussian-field", size=SIZE), operator, problem.noise, y, (1, SIZE, SIZE), Scale()
    )
    assert plain.state_shape == plain.image_shape
    assert copy.copy(plain).zeros().shape == (3, 1, SIZE, SIZE)
