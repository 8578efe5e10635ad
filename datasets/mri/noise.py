"""The noise of receive coils: its covariance, from the data where nothing else tells it, and what makes it white."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

#: Points of k-space are looked at in squares of so many each way, rows of an image in runs of so many numbers.
_SQUARE, _RUN = 8, 64
#: A block holds noise alone where its mean square is below 1 plus so many standard deviations of it.
_DEVIATIONS = 2.5
#: Part of the blocks that the search starts from.
_START = 0.03
#: Coils whose noise is equal and uncorrelated to this factor in variance are taken as they are.
_EQUAL = 1.25
#: Fewer independent numbers tell the level to no better than 4 %, and whether they are noise alone not at all.
_FEW = 200
#: A fall of the power by more than this part for each standard deviation of the distance, and standard errors of it, is signal.
_TREND, _CHANCE = 0.06, 1.65
#: Combinations of coils with less noise than this part, once each has unit noise, are one and the same signal twice.
_DEGENERATE = 1e-6


@dataclass(frozen=True)
class CoilNoise:
    """Noise of the coils.

    Attributes:
        covariance: (coils, coils) complex Hermitian, of the real and of the imaginary part each; rows of zeros for coils
            that hold nothing.
        count: how many complex numbers of each coil it was taken from.
        doubt: why these may not be noise alone; empty where nothing speaks against it.
    """

    covariance: np.ndarray
    count: int
    doubt: str = ""


@dataclass(frozen=True)
class Whitening:
    """What brings coils to white noise of one level.

    Attributes:
        matrix: (kept, coils), to multiply k-space and coil maps with; None where nothing has to be done.
        back: (coils, kept), to the coils as they are.
        sigma: standard deviation of each part of the noise then: the median coil's, so that numbers stay what they were.
        notes: a line each on what was done.
    """

    matrix: np.ndarray | None
    back: np.ndarray | None
    sigma: float
    notes: tuple[str, ...] = ()

    def __call__(self, coils: np.ndarray) -> np.ndarray:
        """Coils (coils, ...) as white ones (kept, ...)."""
        return coils if self.matrix is None else np.tensordot(self.matrix, coils, 1).astype(coils.dtype)

    def lengths(self, maps: np.ndarray) -> np.ndarray:
        """Root sum of squares over the coils as they are, of maps (kept, ...) of white ones."""
        return np.linalg.norm(maps if self.back is None else np.tensordot(self.back, maps, 1), axis=0)


#: Coils of which nothing is known.
AS_THEY_ARE = Whitening(None, None, 0.0)


def whitening(noise: CoilNoise) -> Whitening:
    """The whitening of coils whose noise is unequal or correlated, without those that hold nothing.

    Raises:
        ValueError: no coil has noise.
    """
    variance = noise.covariance.diagonal().real
    live = np.flatnonzero(variance > 0)
    if not len(live):
        raise ValueError("no coil has noise")
    coils, notes = len(variance), []
    if len(live) < coils:
        dead = sorted(set(range(coils)) - set(live.tolist()))
        plural = "s" if len(dead) > 1 else ""
        notes.append(
            f"coil{plural} {', '.join(map(str, dead))} of 0 to {coils - 1} hold{'' if plural else 's'} zeros: left out"
        )
    std = np.sqrt(variance[live])
    correlation = noise.covariance[np.ix_(live, live)] / np.outer(std, std)
    values, vectors = np.linalg.eigh(noise.covariance[np.ix_(live, live)] / np.mean(std**2))
    # What as many numbers of equal, white noise scatter by (Marchenko & Pastur 1967).
    scatter = np.sqrt(len(live) / noise.count)
    if values[0] > max(1 - scatter, 0) ** 2 / _EQUAL and values[-1] < (1 + scatter) ** 2 * _EQUAL:
        keep = np.eye(coils)[live]
        matrix, back = (keep, keep.T) if len(live) < coils else (None, None)
        return Whitening(matrix, back, float(np.sqrt(np.mean(std**2))), tuple(notes))
    sigma = float(np.median(std))
    values, vectors = np.linalg.eigh(correlation)
    used = values > _DEGENERATE
    vectors, root = vectors[:, used], np.sqrt(values[used])
    # Turned back where it can be, so that each coil stays nearest to itself.
    turn = vectors.conj().T if used.all() else np.eye(len(root))
    keep = np.eye(coils)[live]
    matrix = sigma * turn.conj().T @ (vectors.conj().T / root[:, None]) / std @ keep
    back = keep.T @ (std[:, None] * (vectors * root) @ turn) / sigma
    largest = float(np.abs(correlation - np.eye(len(live))).max())
    notes.append(
        f"coils prewhitened: their noise goes from {std.min():.4g} to {std.max():.4g}, correlated by up to {largest:.2f}"
    )
    return Whitening(matrix, back, sigma, tuple(notes))


def left_alone(noise: CoilNoise) -> Whitening:
    """The coils as they are, with the root mean square of their levels."""
    variance = noise.covariance.diagonal().real
    return Whitening(None, None, float(np.sqrt(variance[variance > 0].mean())))


def sample_covariance(values: np.ndarray) -> CoilNoise:
    """From numbers (coils, count) that are noise alone; without correlations where there are too few of them."""
    count = values.shape[1]
    covariance = values @ values.conj().T / (2 * count)
    if count < 4 * len(values):
        covariance = np.diag(covariance.diagonal().real).astype(covariance.dtype)
    return CoilNoise(covariance, count)


def estimate_noise(kspace: np.ndarray, mask: np.ndarray) -> CoilNoise:
    """The noise of k-space, wherever it stands alone: far from the centre, in the rows, or in the pixels that see air.

    Signal only adds. So each of the three views is cut into blocks, of which those that are lowest in all coils and scatter
    as white noise does are taken; and of the views the one that is lowest.

    Args:
        kspace: (coils, rows, columns), centred.
        mask: (rows, columns) boolean, what is measured.
    """
    measured = mask & (kspace != 0).any(0)
    live = np.flatnonzero((kspace != 0).any((1, 2)))
    coils = len(kspace)
    if not len(live):
        return CoilNoise(np.zeros((coils, coils), np.complex128), 0)
    data = np.where(measured, kspace[live], 0).astype(np.complex128)
    views = [_alone(data, measured, (_SQUARE, _SQUARE))]
    columns = measured.any(0)
    part = measured[:, columns]
    if part.mean(0).min() > 0.5:
        # Rows that are not measured take their part of the noise.
        rows = _transformed(data[:, :, columns], 1) / np.sqrt(part.mean(0))
        views.append(_alone(rows, np.ones(rows.shape[1:], bool), (1, _RUN)))
        if columns.mean() > 0.8:
            image = _transformed(_transformed(data, 1), 2) / np.sqrt(measured.mean())
            views.append(_alone(image, np.ones(image.shape[1:], bool), (_SQUARE, _SQUARE)))
    # A view with few numbers is not lower by chance.
    lowest = min(views, key=lambda v: v.covariance.diagonal().real.mean() * (1 + 4 / np.sqrt(v.count * len(live))))
    covariance = np.zeros((coils, coils), np.complex128)
    covariance[np.ix_(live, live)] = lowest.covariance
    return CoilNoise(covariance, lowest.count, lowest.doubt)


def _transformed(data: np.ndarray, axis: int) -> np.ndarray:
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(data, axis), axis=axis, norm="ortho"), axis)


def _alone(values: np.ndarray, there: np.ndarray, block: tuple[int, int]) -> CoilNoise:
    """Covariance of the numbers (coils, rows, columns) in the blocks that hold least, as far as they scatter like noise."""
    coils, *size = values.shape
    counts = [-(-n // b) for n, b in zip(size, block, strict=True)]
    pad = [(0, c * b - n) for c, b, n in zip(counts, block, size, strict=True)]
    shape = (counts[0], block[0], counts[1], block[1])
    number = np.pad(there, pad).reshape(shape).sum((1, 3)).ravel()
    power = np.pad(np.abs(values) ** 2, [(0, 0), *pad]).reshape(coils, *shape).sum((2, 4)).reshape(coils, -1)
    usable = number >= min(block[0] * block[1] // 4, int(number.max()))
    level = np.full((coils, number.size), np.inf)
    level[:, usable] = power[:, usable] / (2 * number[usable])
    variance = np.quantile(level[:, usable], _START, axis=1)
    relative = _relative(level, variance)
    chosen = relative <= np.quantile(relative[usable], _START)
    where = np.kron(np.arange(number.size).reshape(counts), np.ones(block, int))[: size[0], : size[1]]
    for _ in range(50):
        noise = sample_covariance(values[:, chosen[where] & there])
        variance = noise.covariance.diagonal().real
        if not (variance > 0).all():
            break
        # Correlated coils count for fewer.
        correlation = noise.covariance / np.sqrt(np.outer(variance, variance))
        independent = coils**2 / float((np.abs(correlation) ** 2).sum())
        limit = 1 + _DEVIATIONS / np.sqrt(np.maximum(number, 1) * independent)
        more = (_relative(level, variance) < limit) & usable
        if not more.any() or (more == chosen).all():
            break
        chosen = more
    return replace(noise, doubt=_doubt(values, chosen[where] & there, noise))


def _doubt(values: np.ndarray, chosen: np.ndarray, noise: CoilNoise) -> str:
    """Why the chosen numbers may not be noise alone: signal falls off outward, from the middle of a view; noise does not.

    Args:
        values: (coils, rows, columns).
        chosen: (rows, columns) boolean.
        noise: what was made of them.
    """
    variance = noise.covariance.diagonal().real
    if not (variance > 0).all():
        return ""
    sample = values[:, chosen]
    correlation = sample @ sample.conj().T / (2 * sample.shape[1] * np.sqrt(np.outer(variance, variance)))
    count = sample.shape[1] * len(values) ** 2 / float((np.abs(correlation) ** 2).sum())
    if count < _FEW:
        return f"only {count:.0f} independent numbers hold so little"
    power = (np.abs(sample) ** 2 / (2 * variance[:, None])).mean(0)
    offset = [(k - n // 2) / n for k, n in zip(np.nonzero(chosen), chosen.shape, strict=True)]
    radius = np.hypot(*offset)
    # How much the power changes with one standard deviation of the radius; of noise alone 0, give or take 1 / sqrt(count).
    trend = float((power * (radius - radius.mean())).mean() / max(radius.std(), np.finfo(float).tiny))
    falls = trend < -_TREND and trend * np.sqrt(count) < -_CHANCE
    return "what was taken for noise falls off outward, as signal does" if falls else ""


def _relative(level: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Mean square of each block over that of the noise, mean over the coils."""
    return (level / np.maximum(variance, np.finfo(float).tiny)[:, None]).mean(0)
