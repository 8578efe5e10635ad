"""Random numbers keyed by (seed, item, sample, step): the same bits for every batch size, order, device and resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

#: Stands for "all samples of this item" in a chain's key: draws that the particles of one item share.
SHARED = 2**32 - 1


def _key(seed: int, item: int, sample: int) -> np.ndarray:
    return np.random.SeedSequence([seed, item, sample]).generate_state(2, np.uint64)


@dataclass
class ChainRandom:
    """Draws for a batch of chains, one (item, sample) pair a row, at one step.

    Counter-based (Philox): nothing is carried from step to step, so a checkpoint needs no generator state.

    Args:
        seed: the run's seed, >= 0.
        chains: the (item, sample) pair of each batch row.
        step: position in the loop; the engine advances it.
        coherence: how alike the normal numbers of neighbouring items are, for slices that are sampled one by one: each is a
            mixture of unit variance of its neighbours', with a Gaussian window of this standard deviation, in items. Items m
            apart correlate as exp(-(m / (2 coherence))^2). 0: not at all; infinite: all items have the same.
    """

    seed: int
    chains: Sequence[tuple[int, int]]
    step: int = 0
    coherence: float = 0.0
    _draw: int = 0
    _keys: list[np.ndarray] = field(default_factory=list, repr=False)
    _window: np.ndarray = field(default_factory=lambda: np.ones(1), repr=False)

    def __post_init__(self) -> None:
        self._keys = [_key(self.seed, item, sample) for item, sample in self.chains]
        if self.coherence and math.isfinite(self.coherence):
            reach = math.ceil(4 * self.coherence)
            window = np.exp(-((np.arange(-reach, reach + 1) / self.coherence) ** 2) / 2)
            self._window = window / np.linalg.norm(window)

    def at(self, step: int) -> ChainRandom:
        """Position at the start of a step."""
        self.step, self._draw = step, 0
        return self

    def _generators(self, keys: Sequence[np.ndarray] | None = None) -> Iterator[np.random.Generator]:
        """One generator, placed at the start of each key's stream in turn: use it before you ask for the next.

        A generator made anew for each chain would ask the system for entropy and cost more than the numbers drawn.
        """
        self._draw += 1
        bits = np.random.Philox(0)
        generator = np.random.Generator(bits)
        place = bits.state
        place["buffer_pos"], place["has_uint32"], place["uinteger"] = 4, 0, 0
        place["state"]["counter"] = np.array([0, self._draw, self.step, 0], np.uint64)
        for key in keys or self._keys:
            place["state"]["key"] = key
            bits.state = place
            yield generator

    def _standard_normal(self, shape: tuple[int, ...], dtype: type[np.float32] | type[np.float64]) -> np.ndarray:
        """(chains, *shape), each row by its key, or mixed from its neighbours' in the order of the items."""
        mixed = np.zeros((len(self.chains), *shape), dtype)
        if not self.coherence:
            for row, generator in zip(mixed, self._generators(), strict=True):
                generator.standard_normal(dtype=dtype, out=row)
            return mixed
        span = range(len(self._window))
        wanted = [[(item + k if math.isfinite(self.coherence) else 0, s) for k in span] for item, s in self.chains]
        sources = sorted({source for row in wanted for source in row})
        generators = self._generators([_key(self.seed, *source) for source in sources])
        for source, generator in zip(sources, generators, strict=True):
            part = generator.standard_normal(shape, dtype=dtype)
            for row, neighbours in zip(mixed, wanted, strict=True):
                if source in neighbours:
                    row += dtype(self._window[neighbours.index(source)]) * part
        return mixed

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like` (B, ...); complex: each part has variance 1."""
        real = like.dtype.to_real() if like.is_complex() else like.dtype
        wide = np.float64 if real == torch.float64 else np.float32
        shape = (*like.shape[1:], 2) if like.is_complex() else tuple(like.shape[1:])
        host = torch.from_numpy(self._standard_normal(shape, wide))
        if like.device.type == "cuda":
            host = host.pin_memory()
        out = host.to(like.device, real, non_blocking=True)
        return torch.view_as_complex(out) if like.is_complex() else out

    def uniform(self) -> Tensor:
        """One number in [0, 1) a chain, (B,), float64 on the CPU."""
        return torch.tensor([g.random() for g in self._generators()], dtype=torch.float64)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with mean `rate` (B, ...), >= 0; drawn on the CPU in float64, returned like `rate`."""
        host = rate.detach().to("cpu", torch.float64).numpy()
        drawn = np.stack([g.poisson(row) for g, row in zip(self._generators(), host, strict=True)])
        return torch.from_numpy(drawn).to(rate)
