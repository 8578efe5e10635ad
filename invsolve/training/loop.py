"""The training loop: EDM loss, averaged weights, snapshots, validation by noise level."""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from invsolve.contracts.prior import Prior
from invsolve.datasets.hdf5 import replace
from invsolve.errors import Interrupted, NonFinite
from invsolve.training.batches import Batch, Source, worker_count
from invsolve.training.error_curve import log_spaced, mean_squared_error
from invsolve.training.parallel import Team
from invsolve.training.selection import LEVELS, denoising_psnr
from invsolve.training.settings import Request, Settings
from invsolve.training.snapshot import LossCurve, write_snapshot

BANDS = 8


def output_weight(sigma: Tensor, settings: Settings) -> Tensor:
    """Weight of the squared error of D that gives the network's own output the same weight at every noise level.

    Karras 2022, table 1; of a flow D = x_t - t v, t = sigma / (1 + sigma), so that an error of v counts as 1 / t^2 of D's.
    """
    if settings.kind == "flow":
        return ((1 + sigma) / sigma) ** 2
    return (sigma**2 + settings.sigma_data**2) / (sigma * settings.sigma_data) ** 2


class Training:
    """A network on its way to a prior. Its state is what a snapshot holds.

    Args:
        prior: to train, with random weights, in training mode.
        request: settings, files and snapshot intervals.
        config: of the run, for the snapshot.
        batches: of this process.
        validation: (N, C, *size), network units.
        team: the processes.
    """

    def __init__(
        self,
        prior: Prior,
        request: Request,
        config: Mapping[str, Any],
        batches: Source,
        validation: Tensor,
        team: Team,
    ) -> None:
        self.request, self.settings, self.config = request, request.settings, config
        self.batches, self.validation, self.team = batches, validation, team
        self.prior = prior.to(team.device)
        self.averaged = copy.deepcopy(self.prior).requires_grad_(False).eval()
        self.model = team.wrap(self.prior)
        self.optimiser = torch.optim.AdamW(
            self.prior.parameters(),
            lr=self.settings.lr,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            fused=team.device.type == "cuda",
        )
        self.step, self.elapsed = 0, 0.0
        self.loss_sum, self.loss_count = torch.zeros((), dtype=torch.float64, device=team.device), 0
        self.last: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        edges = log_spaced(prior.sigma_min, prior.sigma_max, BANDS + 1)
        self.bands = [math.sqrt(a * b) for a, b in pairwise(edges)]
        self.half = self.settings.precision == "bf16" or (
            self.settings.precision == "auto" and team.device.type == "cuda"
        )

    def state(self) -> dict[str, Any]:
        """What the rest of the run depends on."""
        return {
            "step": self.step,
            "elapsed": self.elapsed,
            "network": self.prior.state_dict(),
            "ema": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "last": self.last,
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])
        self.prior.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.loss_sum = state["loss_sum"].to(self.team.device)
        self.loss_count, self.last = int(state["loss_count"]), dict(state["last"])
        self.best = dict(state.get("best", {}))

    def progress(self) -> float:
        """Share of the run that is done, by steps or by the clock, whichever is further."""
        by_step = self.step / self.settings.total if self.settings.total else 0.0
        by_clock = self.elapsed / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return min(1.0, max(by_step, by_clock))

    def run(self, curve: LossCurve | None, should_stop: Callable[[], bool], bar: bool | None = None) -> None:
        """Train to the end.

        Args:
            curve: where the losses go; None on all processes but the first.
            should_stop: asked after each step; True writes a snapshot and raises.
            bar: show a progress bar; None only on a terminal.

        Raises:
            Interrupted: when asked to stop.
            NonFinite: the loss is no number; the snapshot before it stays.
        """
        began, before = time.perf_counter(), self.elapsed
        saved_at = before
        self._compile()
        hidden = True if not self.team.leads else None if bar is None else not bar
        source = self.batches.ahead(self.step, worker_count(self.team.device))
        with (
            closing(source),
            tqdm(total=self.settings.total, initial=self.step, disable=hidden, unit="step", leave=False) as shown,
        ):
            while self.progress() < 1:
                self._learn(next(source))
                shown.update()
                # Every process must see the same clock and the same wish to stop, or they would part.
                self.elapsed, stop = self.team.largest(before + time.perf_counter() - began, float(should_stop()))
                finished = self.progress() >= 1
                due = self.step % self.settings.log_every == 0
                if due or finished:
                    self._log(curve)
                    shown.set_postfix_str(f"loss {self.last['loss']:.4f}")
                if self.step % self.settings.validation_interval == 0 or finished:
                    self._validate(curve)
                by_step = self.request.snapshot_steps and self.step % self.request.snapshot_steps == 0
                if finished or stop or by_step or self.elapsed - saved_at > self.request.snapshot_seconds:
                    self._keep()
                    saved_at = self.elapsed
                if stop and not finished:
                    of = f" of {self.settings.total}" if self.settings.total else ""
                    raise Interrupted(f"stopped after step {self.step}{of}; run the same command to go on")

    def _compile(self) -> None:
        """Compile the network where it pays; where it cannot be compiled, say so and train it as it is."""
        wanted, device = self.settings.compile, self.team.device
        if device.type == "cuda":
            # Every batch has the same shape, so the search for the fastest convolution is made once.
            torch.backends.cudnn.benchmark = True
        if wanted == "no" or self.team.world > 1 or (wanted == "auto" and device.type != "cuda"):
            return
        network: Any = self.prior.network
        try:
            # In place: the names of the weights stay what they are.
            network.compile()
            batch = self.batches.at(self.step)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
                estimate = self.model(batch.noisy.to(device), batch.sigma.to(device))
            estimate.float().square().mean().backward()
        except Exception as error:  # whatever a compiler or its tools raise
            network._compiled_call_impl = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            warnings.warn(f"the network is trained uncompiled: {reason}", stacklevel=2)
        self.optimiser.zero_grad(set_to_none=True)

    def _learn(self, batch: Batch) -> None:
        """One step: forward, backward, optimiser, average."""
        s, device = self.settings, self.team.device
        noisy, sigma, target = (t.to(device, non_blocking=True) for t in (batch.noisy, batch.sigma, batch.target))
        warm = min(1.0, (self.step + 1) / (s.warm_steps + 1))
        rate = s.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress())))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Dropout draws from torch's own generator.
        key = np.random.SeedSequence([s.seed, self.step, self.team.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(key[0] >> np.uint64(1)))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
            estimate = self.model(noisy, sigma)
        each = output_weight(sigma, s) * (estimate.float() - target).square().flatten(1).mean(1)
        if batch.outlier is not None:
            # Far from the images the error may be of any size; it must not rule the step.
            each = torch.where(batch.outlier.to(device), each.log1p(), each)
        loss = each.mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.prior.parameters(), s.clip_gradient)
        self.optimiser.step()
        # A short memory at first, so that the random start is forgotten.
        decay = min(s.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.prior.parameters()), 1 - decay)
        self.loss_sum += loss.detach()
        self.loss_count += 1
        self.step += 1

    def _log(self, curve: LossCurve | None) -> None:
        """Write the mean loss since the last line; the one place where training waits for the device."""
        if self.loss_count:
            loss = self.team.mean(float(self.loss_sum) / self.loss_count)
            self._check(loss)
            self.last["loss"] = loss
            if curve is not None:
                curve.write({"step": self.step, "loss": loss, "lr": self.optimiser.param_groups[0]["lr"]})
        self.loss_sum.zero_()
        self.loss_count = 0

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFinite(
                f"the loss is not finite at step {self.step}; a smaller learning rate (--set lr={self.settings.lr / 3:.2g}) "
                "or --precision float32 may help; the last snapshot was good"
            )

    def _validate(self, curve: LossCurve | None) -> None:
        """Loss of the averaged weights on held-out images, one noise level a band."""
        if curve is None:
            return
        mse = mean_squared_error(self.averaged, self.validation, self.bands, len(self.batches.mine), self.team.device)
        weights = [float(output_weight(torch.tensor(sigma), self.settings)) for sigma in self.bands]
        loss = sum(w * m for w, m in zip(weights, mse, strict=True)) / len(mse)
        bands = {f"{sigma:.3g}": value for sigma, value in zip(self.bands, mse, strict=True)}
        psnr = denoising_psnr(self.averaged, self.validation, LEVELS, len(self.batches.mine), self.team.device)
        scores = {f"{level:g}": value for level, value in zip(LEVELS, psnr, strict=True)}
        figures: dict[str, Any] = {"validation_loss": loss, "validation_mse": bands, "validation_psnr": scores}
        self.last |= figures
        curve.write({"step": self.step, **figures})
        score = sum(psnr) / len(psnr)
        if score > self.best.get("score", -math.inf):
            kept = {name: value.detach().clone() for name, value in self.averaged.state_dict().items()}
            self.best = {"score": score, "step": self.step, "weights": kept, "figures": figures}

    def chosen(self) -> Prior:
        """The averaged network with the weights of the validation that denoised best; `last` then tells of them."""
        if self.best:
            self.averaged.load_state_dict(self.best["weights"])
            self.last |= {**self.best["figures"], "kept_step": self.best["step"]}
        return self.averaged

    def _keep(self) -> None:
        """Write a snapshot, unless the state is spoilt."""
        self._check(self.team.mean(float(self.loss_sum)))
        if self.team.leads:
            write_snapshot(self.request.snapshot, self.config, self.state())
            path = self.request.preview
            temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.safetensors")
            self.averaged.save(temporary)
            replace(temporary, path)
