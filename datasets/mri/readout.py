"""K-space of volumes, transformed along the readout: it falls apart into planes of phase encodings."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable

import numpy as np

#: Bytes that are held in memory; what is larger goes into a nameless file in the folder for temporary files.
_MEMORY = 512 * 2**20


class AlongReadout:
    """Planes of volumes; the volume that was asked for last is kept.

    Args:
        coil: k-space of one coil of a volume, (readout, phase, phase), centred, from their numbers.
        shape: (readout, coils, phase, phase).
    """

    def __init__(self, coil: Callable[[int, int], np.ndarray], shape: tuple[int, int, int, int]) -> None:
        self.coil, self.shape = coil, shape
        self._lock = threading.Lock()
        self._held: tuple[int, np.ndarray] | None = None

    def plane(self, volume: int, position: int) -> np.ndarray:
        """K-space of the plane at a position along the readout, (coils, phase, phase) complex64, centred."""
        with self._lock:
            if self._held is None or self._held[0] != volume:
                self._held = None  # Before the next is made: there is room for one.
                self._held = volume, self._transformed(volume)
            return np.array(self._held[1][position])

    def _transformed(self, volume: int) -> np.ndarray:
        if 8 * int(np.prod(self.shape)) <= _MEMORY:
            planes = np.empty(self.shape, np.complex64)
        else:
            # It has no name: nothing is left behind, however the process ends.
            with tempfile.TemporaryFile(prefix="invsolve-planes-") as file:
                planes = np.memmap(file, np.complex64, "w+", shape=self.shape)
        for coil in range(self.shape[1]):
            lines = np.fft.ifftshift(self.coil(volume, coil), 0)
            planes[:, coil] = np.fft.fftshift(np.fft.ifft(lines, axis=0, norm="ortho"), 0)
        return planes


def whole_readouts(measured: np.ndarray) -> np.ndarray | None:
    """Which phase encodings are measured, of a mask (readout, phase, phase); None where readouts are measured in part.

    One point in a hundred may be zero by chance.
    """
    lines = np.asarray(measured.any(0))
    return lines if not lines.any() or float(measured[:, lines].mean()) > 0.99 else None
