"""Random numbers keyed by (seed, item, sample, step): the same bits for every batch size, order, device and resume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError

#: Stands for "all samples of this item" in a chain's key: draws that the particles of one item share.
SHARED = 2**32 - 1


#: The largest mean of counts that NumPy draws, a little below 2^63.
_LARGEST_COUNT = 9e18
#: Normal numbers made at once: more would leave the processor's cache.
_CHUNK = 2**16

Chains = Sequence[tuple[int, int]]


@lru_cache(maxsize=64)
def _key(seed: int, blocks: int) -> np.ndarray:
    return np.random.SeedSequence([seed, blocks]).generate_state(2, np.uint64)


@lru_cache(maxsize=64)
def _runs(chains: Chains, most: int) -> list[tuple[int, int, int]]:
    """Rows of one item whose samples follow one another, at most so many together: (item, first sample, how many)."""
    runs, first = [], 0
    for row in range(1, len(chains) + 1):
        item, sample = chains[first]
        if row == len(chains) or row - first == most or chains[row] != (item, sample + row - first):
            runs.append((item, sample, row - first))
            first = row
    return runs


def _normal_from_bits(words: np.ndarray, out: np.ndarray) -> None:
    """Box and Muller (1958): whole random words (rows, 2, n) to standard normal numbers (rows, 2, n) of the same width."""
    size = out.dtype.type(2.0 ** -(8 * words.itemsize))
    uniform = words.astype(out.dtype)
    # Half a unit up: the logarithm of zero is not wanted, and the smallest numbers decide how far the tails reach.
    radius = (uniform[:, 0] + out.dtype.type(0.5)) * size
    np.log(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    angle = uniform[:, 1] * out.dtype.type(2 * np.pi * size)
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle), out=out[:, 1])


@dataclass
class ChainRandom:
    """Draws for a batch of chains, one (item, sample) pair a row, at one step.

    Counter-based (Philox): nothing is carried from step to step, so a snapshot needs no generator state. The key is the
    seed's; the counter holds item, step, the draw's number within the step, and the sample's place in that draw. So the
    samples of an item lie one behind the other, and are drawn by one call.

    Args:
        seed: the run's seed, >= 0.
        chains: the (item, sample) pair of each batch row, >= 0.
        step: position in the loop; the engine advances it.
        noise_correlation: how alike the normal numbers of neighbouring items are, for slices that are sampled one by one: each is
            a mixture of unit variance of its neighbours', with a Gaussian window of this standard deviation, in items. Items m
            apart correlate as exp(-(m / (2 noise_correlation))^2). 0: not at all; infinite: all items have the same.
    """

    seed: int
    chains: Chains
    step: int = 0
    noise_correlation: float = 0.0
    _draw: int = 0
    _window: np.ndarray = field(default_factory=lambda: np.ones(1), repr=False)

    def __post_init__(self) -> None:
        if self.noise_correlation and math.isfinite(self.noise_correlation):
            reach = math.ceil(4 * self.noise_correlation)
            window = np.exp(-((np.arange(-reach, reach + 1) / self.noise_correlation) ** 2) / 2)
            self._window = window / np.linalg.norm(window)

    def at(self, step: int) -> ChainRandom:
        """Position at the start of a step."""
        self.step, self._draw = step, 0
        return self

    def _streams(self, starts: Iterable[tuple[int, int]], blocks: int) -> Iterator[np.random.Philox]:
        """The stream of the current draw from each (item, sample) on, `blocks` of the counter a sample: use it before the next.

        One made anew for each would ask the system for entropy and cost more than the numbers drawn.
        """
        bits = np.random.Philox(0)
        place = bits.state
        place["buffer_pos"], place["has_uint32"], place["uinteger"] = 4, 0, 0
        # Draws of another size are keyed apart, for their samples lie otherwise.
        place["state"]["key"] = _key(self.seed, blocks)
        for item, sample in starts:
            place["state"]["counter"] = np.array([sample * blocks % 2**64, self._draw, self.step, item], np.uint64)
            bits.state = place
            yield bits

    def _generators(self) -> Iterator[np.random.Generator]:
        """One generator a chain in turn, for draws that take nobody knows how many numbers."""
        self._draw += 1
        for bits in self._streams(self.chains, 2**32):
            yield np.random.Generator(bits)

    def _independent_normal(self, chains: Chains, numbers: int, dtype: np.dtype) -> np.ndarray:
        """Standard normal numbers (chains, numbers), each row for itself."""
        word = np.dtype(f"u{dtype.itemsize}")
        # A counter's step gives a block of four 64-bit numbers.
        blocks = max(-(-numbers * dtype.itemsize // 32), 1)
        width = 32 * blocks // dtype.itemsize
        out = np.empty((len(chains), 2, width // 2), dtype)
        runs = _runs(tuple(chains), max(_CHUNK // width, 1))
        row = 0
        for bits, (_, _, rows) in zip(self._streams([run[:2] for run in runs], blocks), runs, strict=True):
            words = bits.random_raw(4 * blocks * rows).view(word)
            _normal_from_bits(words.reshape(rows, 2, -1), out[row : row + rows])
            row += rows
        return out.reshape(len(chains), width)[:, :numbers]

    def _standard_normal(self, numbers: int, dtype: np.dtype) -> np.ndarray:
        """(chains, numbers), each row by its key, or mixed from its neighbours' in the order of the items."""
        self._draw += 1
        if not self.noise_correlation:
            return self._independent_normal(self.chains, numbers, dtype)
        mixed = np.zeros((len(self.chains), numbers), dtype)
        span = range(len(self._window))
        wanted = [
            [(item + k if math.isfinite(self.noise_correlation) else 0, s) for k in span] for item, s in self.chains
        ]
        for source in sorted({source for row in wanted for source in row}):
            part = self._independent_normal([source], numbers, dtype)[0]
            for row, neighbours in zip(mixed, wanted, strict=True):
                if source in neighbours:
                    row += dtype.type(self._window[neighbours.index(source)]) * part
        return mixed

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like` (B, ...); complex: each part has variance 1."""
        real = like.dtype.to_real() if like.is_complex() else like.dtype
        wide = np.dtype(np.float64 if real == torch.float64 else np.float32)
        shape = (*like.shape[1:], 2) if like.is_complex() else tuple(like.shape[1:])
        drawn = self._standard_normal(math.prod(shape), wide)
        host = torch.from_numpy(drawn).reshape(len(drawn), *shape)
        if like.device.type == "cuda":
            host = host.pin_memory()
        out = host.to(like.device, real, non_blocking=True)
        return torch.view_as_complex(out) if like.is_complex() else out

    def uniform(self) -> Tensor:
        """One number in [0, 1) a chain, (B,), float64 on the CPU."""
        return torch.tensor([g.random() for g in self._generators()], dtype=torch.float64)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with mean `rate` (B, ...), >= 0; drawn on the CPU in float64, returned like `rate`.

        Raises:
            UserError: a mean that is not finite, or so large that its counts are no 64-bit numbers.
        """
        host = rate.detach().to("cpu", torch.float64).numpy()
        if not (host <= _LARGEST_COUNT).all():
            raise UserError(
                f"counts of {np.max(host):.3g} are beyond those that can be drawn ({_LARGEST_COUNT:g}); check the unit of "
                "gain and image"
            )
        drawn = np.stack([g.poisson(row) for g, row in zip(self._generators(), host, strict=True)])
        return torch.from_numpy(drawn).to(rate)

    def gamma(self, shape: Tensor) -> Tensor:
        """Gamma numbers of scale 1 and shape parameters (B, ...), > 0; drawn on the CPU in float64, returned like `shape`."""
        host = shape.detach().to("cpu", torch.float64).numpy()
        drawn = np.stack([g.standard_gamma(row) for g, row in zip(self._generators(), host, strict=True)])
        return torch.from_numpy(drawn).to(shape)
