"""Plane-wave ultrasound as a plugin: echoes of a tissue's reflectivity, a SciPy matrix around which `adapt` makes the operator.

invsolve simulate tissue.h5 -o scan.h5 --operator plane-wave --plugin ultrasound.py --noise gaussian:0.05
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse

from invsolve import LinearOperator, UserError, adapt, hookimpl
from invsolve.contracts.wrapped import WrappedLinear


def delays(
    depths: np.ndarray, places: np.ndarray, elements: np.ndarray, angle: float, speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """How long a plane wave takes to each pixel, and back to each element: (rows, columns), (rows, columns, elements), seconds.

    The wave leaves the outermost element it meets first at time 0 (Montaldo 2009, equation 1).

    Args:
        depths, places: of the pixels' rows and columns, metres.
        elements: places of the receivers, metres.
        angle: by which the wave is steered, radians.
        speed: of sound, metres per second.
    """
    first = -np.abs(elements).max() * abs(math.sin(angle))
    there = (depths[:, None] * math.cos(angle) + places * math.sin(angle) - first) / speed
    back = np.hypot(depths[:, None, None], places[:, None] - elements) / speed
    return there, back


def echoes(
    size: tuple[int, int],
    pixel: float,
    depth: float,
    elements: np.ndarray,
    angles: np.ndarray,
    samples: int,
    rate: float,
    frequency: float,
    speed: float,
) -> scipy.sparse.csr_array:
    """The matrix from reflectivity to echoes, (angles * elements * samples, rows * columns).

    A pixel sends a pulse of two cycles, cos(2 pi f t) under a Gaussian, from its place to each element, weaker by the root of the
    way back, as waves in a plane are. Transposed, it is delay and sum with the matched filter.
    """
    rows, columns = size
    depths = depth + pixel * np.arange(rows)
    places = pixel * (np.arange(columns) - (columns - 1) / 2)
    width = 1 / frequency
    reach = math.ceil(2.5 * width * rate)
    near = np.arange(-reach, reach + 1)
    parts = []
    for angle in angles:
        there, back = delays(depths, places, elements, float(angle), speed)
        arrival = (there[..., None] + back) * rate  # in samples
        nearest = np.rint(arrival).astype(np.int64)
        k = nearest[..., None] + near
        time = (k - arrival[..., None]) / rate
        pulse = np.cos(2 * np.pi * frequency * time) * np.exp(-0.5 * (time / (width / 2)) ** 2)
        pulse /= np.sqrt(back * speed / pixel)[..., None]
        element = np.arange(len(elements))[:, None]
        row = element * samples + k
        column = np.broadcast_to(np.arange(rows * columns).reshape(rows, columns, 1, 1), k.shape)
        inside = (k >= 0) & (k < samples)
        entries = pulse[inside], (row[inside], column[inside])
        parts.append(scipy.sparse.csr_array(entries, shape=(len(elements) * samples, rows * columns)))
    return scipy.sparse.vstack(parts, format="csr")


class PlaneWave(WrappedLinear, LinearOperator):
    """Echoes of plane waves from a row of elements: y = sum over pixels of reflectivity times pulse.

    First Born approximation, one speed of sound, elements that hear all directions alike. x (B, 1, image_size, image_size),
    reflectivity, depth downwards; y (B, angles * elements * samples), which `y.unflatten(1, operator.shape)` takes apart.
    Linear; the adjoint is delay and sum.

    Args:
        image_size: rows and columns.
        pixel: side of a pixel, in mm.
        depth: of the first row, in mm.
        elements: receivers, over the width of the image.
        angles: waves, steered from -15 to 15 degrees.
        frequency: of the pulse, in MHz.
        rate: samples per period of the pulse.
        speed: of sound, in m/s.

    Raises:
        UserError: nothing to measure, or a matrix that is too large.
    """

    name = "plane-wave"
    examples = ({"image_size": 8, "elements": 6, "angles": 3},)

    def __init__(
        self,
        image_size: int = 64,
        pixel: float = 0.15,
        depth: float = 5.0,
        elements: int = 32,
        angles: int = 5,
        frequency: float = 3.0,
        rate: float = 4.0,
        speed: float = 1540.0,
    ) -> None:
        if min(image_size, elements, angles) < 1 or not min(pixel, depth, frequency, rate - 2, speed) > 0:
            raise UserError(
                "operator 'plane-wave': image_size, elements, angles, pixel, depth, frequency and speed must be above 0, "
                f"rate above 2, got {image_size}, {elements}, {angles}, {pixel}, {depth}, {frequency}, {speed} and {rate}"
            )
        width = image_size * pixel * 1e-3
        places = (np.arange(elements) - (elements - 1) / 2) * width / elements
        steered = np.deg2rad(np.linspace(-15, 15, angles)) if angles > 1 else np.zeros(1)
        sampling = rate * frequency * 1e6
        # From the far corners and back, and the end of the pulse.
        longest = (2 * math.hypot(depth * 1e-3 + width, width) + width) / speed + 3 / (frequency * 1e6)
        samples = math.ceil(longest * sampling)
        pulse = 2 * math.ceil(2.5 * rate) + 1
        if image_size**2 * elements * angles * pulse > 3e8:
            raise UserError(
                "operator 'plane-wave': more than 300 million entries; take fewer angles, elements or pixels"
            )
        matrix = echoes(
            (image_size, image_size),
            pixel * 1e-3,
            depth * 1e-3,
            places,
            steered,
            samples,
            sampling,
            frequency * 1e6,
            speed,
        )
        super().__init__(adapt(matrix / abs(matrix).sum(1).max(), image_shape=(1, image_size, image_size)))
        self.shape = (angles, elements, samples)


@hookimpl
def invsolve_operators() -> dict[str, type]:
    return {"plane-wave": PlaneWave}
