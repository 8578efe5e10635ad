"""A small tomography scan whose answer is known, as NXtomo and as DXchange."""

from pathlib import Path

import h5py
import numpy as np

from invsolve.datasets.phantoms import Ellipse, sinogram

SIZE, ANGLES, CENTRE = 40, 36, 18.4
DEGREES = np.arange(ANGLES) * 5.0
# Flats before and after, darks in between, one frame of no use.
KEYS = np.array([1] * 4 + [0] * 18 + [2] * 5 + [3] + [0] * 18 + [1] * 3)
DETECTOR = "scan 1/beamline/camera"


def frames() -> np.ndarray:
    """Counts of projections, flats, darks and one frame of no use, in the order of KEYS."""
    rng = np.random.default_rng(0)
    body = [Ellipse(0.6, 0.5, 0.4, 0.1, 0.05)]
    lines = sinogram(body, DEGREES, SIZE, SIZE, 1.0, CENTRE).numpy() * 0.05
    beam = 4000 * (1 + 0.1 * rng.random((2, SIZE)))
    mean = np.empty((len(KEYS), 2, SIZE))
    mean[KEYS == 0] = (beam * np.exp(-lines)[:, None]).astype(float)
    mean[KEYS == 1] = beam
    mean[KEYS == 2] = 0
    mean[KEYS == 3] = 1e4
    return (100 + rng.poisson(mean)).astype(np.uint16)


def write_nxtomo(path: Path) -> Path:
    """An NXtomo file with names of its own and everything that the definition allows."""
    with h5py.File(path, "w") as file:
        entry = file.create_group("scan 1")
        entry.attrs["NX_class"] = np.bytes_("NXentry")
        entry["definition"] = "NXtomo"
        camera = file.create_group(DETECTOR)
        file["scan 1/beamline"].attrs["NX_class"] = "NXinstrument"
        camera.attrs["NX_class"] = "NXdetector"
        camera["data"] = frames()
        camera["image_key"] = KEYS.astype(np.float64)
        sample = entry.create_group("tooth")
        sample.attrs["NX_class"] = "NXsample"
        angles = np.full(len(KEYS), 777.0)
        angles[KEYS == 0] = DEGREES
        sample["rotation_angle"] = angles
        sample["rotation_angle"].attrs["units"] = "degree"
    return path


def write_dxchange(path: Path) -> Path:
    """The same frames as DXchange."""
    values = frames()
    with h5py.File(path, "w") as file:
        file["exchange/data"], file["exchange/data_white"] = values[KEYS == 0], values[KEYS == 1]
        file["exchange/data_dark"], file["exchange/theta"] = values[KEYS == 2], DEGREES
        file["exchange/theta"].attrs["units"] = "degrees"
    return path
