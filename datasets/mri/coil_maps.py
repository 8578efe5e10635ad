"""Receive-coil sensitivities from the centre of k-space (ESPIRiT, Uecker et al. 2014), and the phase of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from invsolve.errors import UserError

#: Pixels whose calibration eigenvalue is below this see no signal; their maps are zero.
CROP = 0.9
#: Pixels whose second eigenvalue reaches this see two places of the object: edges and noise stay below.
TWICE = 0.99
#: Singular values of the calibration matrix below this part of the largest are noise, whatever its level.
RANK = 0.002
_KERNEL = 6
_ITERATIONS = 30
# Complex numbers held at once while pixels are solved.
_BLOCK = 2**21


@dataclass(frozen=True)
class CoilMaps:
    """Maps of one slice.

    Attributes:
        maps: (coils, rows, columns) complex64; sum of squares over the coils 1 where there is signal, else 0.
        eigenvalue: (rows, columns) in [0, 1]; 1 where the calibration data are explained entirely.
        second: (rows, columns), the next eigenvalue: near 1 too where two places of the object lie in one pixel.
    """

    maps: np.ndarray
    eigenvalue: np.ndarray
    second: np.ndarray

    def folded(self) -> float:
        """Part of the pixels with signal that need a second set of maps: the object is larger than the field of view."""
        signal = self.eigenvalue >= CROP
        return float((self.second[signal] >= TWICE).mean()) if signal.any() else 0.0


def calibration_region(kspace: np.ndarray, mask: np.ndarray, size: int, where: str) -> np.ndarray:
    """The fully measured rectangle around the centre of k-space.

    Args:
        kspace: (coils, rows, columns), centred.
        mask: (rows, columns) boolean, what is measured.
        size: at most so many rows and columns.
        where: for the message.

    Raises:
        UserError: it is narrower than 4 rows or columns.
    """
    rows, columns = mask.shape
    centre = (rows // 2, columns // 2)
    half = [0, 0]
    grown = [True, True]
    # Grow by turns, as long as all of it is measured.
    while any(grown):
        for axis in (0, 1):
            if not grown[axis]:
                continue
            trial = list(half)
            trial[axis] += 1
            start = [c - h for c, h in zip(centre, trial, strict=True)]
            stop = [c + h for c, h in zip(centre, trial, strict=True)]
            inside = min(start) >= 0 and stop[0] <= rows and stop[1] <= columns and 2 * trial[axis] <= size
            # While the other side has no width yet, look at the line through the centre.
            lines = [slice(s, max(e, s + 1)) for s, e in zip(start, stop, strict=True)]
            if inside and bool(mask[lines[0], lines[1]].all()):
                half = trial
            else:
                grown[axis] = False
    if min(half) < 2:
        raise UserError(
            f"{where}: only {2 * half[0]} x {2 * half[1]} points around the centre of k-space are fully measured, too few to "
            "calibrate coil maps; give them: coil_maps=MAPS.npy, complex (coils, rows, columns)"
        )
    part = tuple(slice(c - h, c + h) for c, h in zip(centre, half, strict=True))
    return kspace[:, part[0], part[1]]


def calibration_block(kspace: np.ndarray, mask: np.ndarray, size: int, where: str) -> np.ndarray:
    """The fully measured block around the centre of k-space of a volume, as `calibration_region` of a slice.

    Args:
        kspace: (coils, depth, rows, columns), centred.
        mask: (depth, rows, columns) boolean.
        size, where: as there.

    Raises:
        UserError: it is narrower than 4 points across the readout, or has no readout that is measured there.
    """
    rows = mask.shape[1]
    half = min(size // 2, rows // 2)
    along = slice(rows // 2 - half, rows // 2 + half)
    planes = np.moveaxis(kspace[:, :, along], 2, 1).reshape(-1, mask.shape[0], mask.shape[2])
    block = calibration_region(planes, np.asarray(mask[:, along].all(1)), size, where)
    return np.moveaxis(block.reshape(len(kspace), 2 * half, *block.shape[1:]), 1, 2)


def espirit_volume(calibration: np.ndarray, size: tuple[int, ...], sigma: float = 0.0) -> np.ndarray:
    """`espirit` of a volume, plane by plane along the readout: (coils, *size).

    Args:
        calibration: (coils, depth, rows, columns), fully measured, around the centre of k-space.
        size: depth, rows and columns of the maps.
        sigma: of the noise in it.
    """
    depth, rows, columns = size
    known = calibration.shape[2]
    lines = np.zeros((*calibration.shape[:2], rows, calibration.shape[3]), np.complex128)
    lines[:, :, rows // 2 - known // 2 : rows // 2 - known // 2 + known] = (
        calibration * np.hanning(known + 2)[1:-1, None]
    )
    planes = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(lines, 2), axis=2, norm="ortho"), 2)
    reference = strongest(calibration)
    maps = np.empty((len(calibration), *size), np.complex64)
    for row in range(rows):
        # Numbers of the padded lines have their noise spread over all rows.
        level = sigma * (known / rows) ** 0.5
        maps[:, :, row] = espirit(planes[:, :, row], (depth, columns), level, crop=0.0, reference=reference).maps
    return maps


def strongest(data: np.ndarray) -> np.ndarray:
    """The combination of coils with most energy, (coils,)."""
    vector: np.ndarray = np.linalg.svd(data.reshape(len(data), -1), full_matrices=False)[0][:, 0]
    return vector


def espirit(
    calibration: np.ndarray,
    size: tuple[int, int],
    sigma: float = 0.0,
    crop: float = CROP,
    rank: float = RANK,
    reference: np.ndarray | None = None,
) -> CoilMaps:
    """Coil maps as the eigenvectors, of eigenvalue 1, of what the local correlations of k-space leave unchanged.

    Every window of k-space lies in a space that is much smaller than its entries, because the coils see one image. The
    projection of all windows onto it, averaged, is a convolution of k-space: for each pixel a coils x coils matrix, whose
    eigenvector of eigenvalue 1 is the coils' sensitivities there (Uecker et al. 2014, equations 9 to 17).

    Args:
        calibration: (coils, rows, columns), fully measured, around the centre of k-space.
        size: rows and columns of the maps.
        sigma: standard deviation of the real and imaginary part of the noise: what it alone would put into the calibration
            matrix is taken for noise.
        crop: least eigenvalue of maps that are not zero; 0 leaves all, as for `CROP`.
        rank: see `RANK`.
        reference: combination of coils (coils,) that phases are relative to; default the strongest.

    Returns:
        Maps whose phase is relative to one combination of coils, so that it is smooth.
    """
    data = np.asarray(calibration, np.complex128)
    coils = len(data)
    kernel = [min(_KERNEL, n // 2) for n in data.shape[1:]]
    patterns = _signal_space(data, kernel, sigma, rank)
    # h(m) = sum over kernels of the correlation of their coils, for shifts m = -(k - 1) ... k - 1 (equation 15).
    spectrum = np.fft.fft2(patterns, s=[2 * k for k in kernel])
    correlation = np.einsum("jcab,jdab->cdab", spectrum, spectrum.conj(), optimize=True)
    correlation = np.fft.ifft2(correlation) / (kernel[0] * kernel[1])
    waves = []
    for n, k in zip(size, kernel, strict=True):
        shifts = np.fft.fftfreq(2 * k, 1 / (2 * k))
        waves.append(np.exp(2j * np.pi * np.outer(np.arange(n) - n // 2, shifts) / n))
    along_columns = np.einsum("cdab,yb->cday", correlation, waves[1], optimize=True)
    start = low_resolution(data, size)
    maps = np.empty((coils, *size), np.complex64)
    eigenvalue, second = np.empty(size, np.float32), np.zeros(size, np.float32)
    step = max(1, _BLOCK // (size[1] * coils**2))
    for first in range(0, size[0], step):
        block = slice(first, min(first + step, size[0]))
        matrices = np.einsum("xa,cday->xycd", waves[0][block], along_columns, optimize=True)
        # einsum may return a transposed view, on which the products below are ten times slower.
        matrices = np.ascontiguousarray(matrices)
        vectors, values = _leading(matrices, start[:, block].transpose(1, 2, 0))
        maps[:, block], eigenvalue[block] = vectors.transpose(2, 0, 1), values
        signal = values >= CROP
        if coils > 1 and signal.any():
            first_set, others = vectors[signal], matrices[signal]
            others = others - values[signal][:, None, None] * first_set[:, :, None] * first_set[:, None].conj()
            # Any start will do that is not orthogonal to what is looked for.
            across = np.roll(first_set, 1, 1) * np.exp(1j * np.arange(coils))
            second[block][signal] = _leading(others, across)[1]
    phase = np.einsum("c,cxy->xy", (strongest(data) if reference is None else reference).conj(), maps)
    maps *= np.exp(-1j * np.angle(phase)) * (eigenvalue >= crop)
    return CoilMaps(maps, eigenvalue, second)


def _signal_space(data: np.ndarray, kernel: list[int], sigma: float, rank: float) -> np.ndarray:
    """Orthonormal windows (count, coils, *kernel) that span those of the calibration data, less the noise."""
    windows = np.lib.stride_tricks.sliding_window_view(data, kernel, axis=(1, 2))
    matrix = windows.transpose(1, 2, 0, 3, 4).reshape(-1, len(data) * kernel[0] * kernel[1])
    _, strength, right = np.linalg.svd(matrix, full_matrices=False)
    # The largest singular value of a matrix of noise alone (Marchenko & Pastur 1967).
    noise = 2**0.5 * sigma * sum(n**0.5 for n in matrix.shape)
    return right[strength > max(rank * strength[0], min(noise, 0.1 * strength[0]))].reshape(-1, len(data), *kernel)


def _leading(matrices: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit eigenvectors (..., coils) of largest eigenvalue of Hermitian matrices, by power iteration, and the values."""
    vectors = start + 1e-6 * np.abs(start).max()
    for _ in range(_ITERATIONS):
        vectors = np.matmul(matrices, vectors[..., None])[..., 0]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
    values = np.linalg.norm(np.matmul(matrices, vectors[..., None])[..., 0], axis=-1)
    return vectors, values


def low_resolution(calibration: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images (coils, *size) of the calibration region alone, with a Hann window against ringing."""
    padded = np.zeros((len(calibration), *size), np.complex128)
    shape = calibration.shape[1:]
    window: np.ndarray = np.ones(())
    for n in shape:
        window = window[..., None] * np.hanning(n + 2)[1:-1]
    part = tuple(slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(size, shape, strict=True))
    padded[(slice(None), *part)] = calibration * window
    axes = tuple(range(1, padded.ndim))
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(padded, axes), axes=axes, norm="ortho"), axes)


def everywhere(maps: np.ndarray) -> np.ndarray:
    """The maps (coils, rows, columns) without holes: what no coil sees is taken as seen by all alike.

    A hole is left to the prior, which paints what it likes into it. So filled, the data say what is there: nothing.
    """
    length = np.linalg.norm(maps, axis=0)
    seen = length > 0
    if seen.all() or not seen.any():
        return maps
    alike = np.median(length[seen]) / np.sqrt(len(maps))
    return np.where(seen, maps, alike).astype(maps.dtype)


def absorb_phase(maps: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Turn the maps by the phase of the image at low resolution, so that what is left to reconstruct is nearly real."""
    image = (maps.conj() * low_resolution(calibration, maps.shape[1:])).sum(0)
    return (maps * np.exp(1j * np.angle(image))).astype(np.complex64)
