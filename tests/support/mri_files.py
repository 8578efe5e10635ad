"""Small MRI files whose answer is known: fastMRI and ISMRMRD, with everything that makes reading them wrong."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>{readout}</x><y>{phase}</y><z>{depth}</z></matrixSize>
<fieldOfView_mm><x>{encoded_x}</x><y>{encoded_y}</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rows}</x><y>{columns}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>240</x><y>240</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{largest}</maximum><center>{centre}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"""

READOUT, PHASE, ROWS, COLUMNS, COILS, SLICES = 64, 40, 32, 30, 4, 2
#: 36 of 40 columns were acquired: 2 and 2 are padding.
LARGEST, CENTRE = 35, 18
SIGMA = 0.003


def centred_fft(x: np.ndarray) -> np.ndarray:
    """Orthonormal, over the last two axes, written as sums."""
    matrices = []
    for n in x.shape[-2:]:
        k = np.arange(n) - n // 2
        matrices.append(np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n))
    return np.einsum("ab,...bc,dc->...ad", matrices[0], x, matrices[1], optimize=True)


def header(**changes: object) -> str:
    """The header of these files."""
    facts = {"readout": READOUT, "phase": PHASE, "depth": 1, "rows": ROWS, "columns": COLUMNS, "largest": LARGEST}
    facts |= {"centre": CENTRE, "encoded_x": 480, "encoded_y": 320}
    return HEADER.format(**{**facts, "trajectory": "cartesian", **changes})


def scene() -> tuple[np.ndarray, np.ndarray]:
    """(images (slices, READOUT, PHASE) real, k-space (slices, COILS, READOUT, PHASE) without padding's columns)."""
    y, x = np.meshgrid(np.arange(READOUT) - READOUT // 2, np.arange(PHASE) - PHASE // 2, indexing="ij")
    images = []
    for k in range(SLICES):
        body = ((y / 12) ** 2 + (x / 11) ** 2 < 1) * 1.0 + 0.5 * ((y - 3 + 2 * k) ** 2 + (x + 2) ** 2 < 16)
        # Soft edges: the corners of k-space hold noise alone, as in scanners.
        images.append(gaussian_filter(body, 1.2))
    maps = []
    for c in range(COILS):
        angle = 2 * np.pi * c / COILS
        bell = np.exp(-((y / 16 - np.sin(angle)) ** 2 + (x / 16 - np.cos(angle)) ** 2) / 2)
        maps.append(bell * np.exp(1j * (angle + 0.4 * x / 16)))
    kspace = centred_fft(np.stack(images)[:, None] * np.stack(maps)[None])
    rng = np.random.default_rng(5)
    kspace = kspace + SIGMA * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    first = PHASE // 2 - CENTRE
    kspace[..., :first], kspace[..., first + LARGEST + 1 :] = 0, 0
    return np.stack(images), kspace.astype(np.complex64)


def rss(kspace: np.ndarray) -> np.ndarray:
    """Root sum of squares of the coil images, (slices, ROWS, COLUMNS)."""
    images = centred_fft(kspace.conj()).conj()
    first = ((READOUT - ROWS) // 2, (PHASE - COLUMNS) // 2)
    cut = images[..., first[0] : first[0] + ROWS, first[1] : first[1] + COLUMNS]
    return np.sqrt((np.abs(cut) ** 2).sum(1)).astype(np.float32)


def write_fastmri(path: Path, mask: np.ndarray | None = None) -> Path:
    """A validation file, or with a mask a test file."""
    _, kspace = scene()
    with h5py.File(path, "w") as file:
        file["ismrmrd_header"] = header().encode()
        if mask is None:
            file["kspace"], file["reconstruction_rss"] = kspace, rss(kspace)
        else:
            file["kspace"], file["mask"] = kspace * mask, mask.astype(np.float32)
        file.attrs["acquisition"] = "AXT2"
    return path


_INDEX: list[tuple[Any, ...]] = [
    (n, "<u2") for n in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase")
]
_INDEX += [("repetition", "<u2"), ("set", "<u2"), ("segment", "<u2"), ("user", "<u2", (8,))]
_HEAD: list[tuple[Any, ...]] = [
    ("version", "<u2"),
    ("flags", "<u8"),
    ("measurement_uid", "<u4"),
    ("scan_counter", "<u4"),
]
_HEAD += [("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2")]
_HEAD += [("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,))]
_HEAD += [("discard_pre", "<u2"), ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2")]
_HEAD += [("trajectory_dimensions", "<u2"), ("sample_time_us", "<f4"), ("position", "<f4", (3,))]
_HEAD += [(n, "<f4", (3,)) for n in ("read_dir", "phase_dir", "slice_dir", "patient_table_position")]
_HEAD += [("idx", _INDEX), ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,))]
LINE = np.dtype([("head", _HEAD), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))])


def line(samples: np.ndarray, step: int = 0, slice_: int = 0, flags: int = 0, centre: int = READOUT // 2) -> np.ndarray:
    """One acquired line; samples (coils, count)."""
    made = np.zeros(1, LINE)
    head = made["head"]
    head["version"], head["flags"], head["sample_time_us"] = 1, flags, 5.0
    head["number_of_samples"], head["center_sample"] = samples.shape[1], centre
    head["active_channels"] = head["available_channels"] = len(samples)
    head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = step, slice_
    made["data"][0] = np.ascontiguousarray(samples, np.complex64).view(np.float32).ravel()
    made["traj"][0] = np.zeros(0, np.float32)
    return made


def write_lines(path: Path, lines: list[np.ndarray], xml: str | None = None, group: str = "dataset") -> Path:
    """An ISMRMRD file of these lines."""
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{group}/xml", data=[(xml or header()).encode()], dtype=h5py.string_dtype())
        file.create_dataset(f"{group}/data", data=np.concatenate(lines), dtype=LINE)
    return path


def ismrmrd_lines() -> list[np.ndarray]:
    """The scene's lines as scanners send them: noise first, slices interleaved, some backwards, padded or repeated."""
    _, kspace = scene()
    rng = np.random.default_rng(8)
    noise = 10 * SIGMA * (rng.normal(size=(COILS, 500)) + 1j * rng.normal(size=(COILS, 500)))
    noisy = line(noise, flags=1 << 18)
    # Sampled a hundred times as fast: a tenth of the noise in the image's bandwidth.
    noisy["head"]["sample_time_us"] = 0.05
    lines = [noisy]
    for step in range(LARGEST + 1):
        for k in range(SLICES):
            samples = kspace[k][:, :, PHASE // 2 - CENTRE + step]
            if step % 5 == 1:
                lines.append(line(samples[:, ::-1], step, k, 1 << 21, READOUT - 1 - READOUT // 2))
            elif step % 5 == 2:
                padded = np.concatenate([np.full((COILS, 3), 1e6), samples, np.full((COILS, 2), 1e6)], 1)
                made = line(padded, step, k, centre=READOUT // 2 + 3)
                made["head"]["discard_pre"], made["head"]["discard_post"] = 3, 2
                lines.append(made)
            elif step % 5 == 3:
                lines += [line(samples * f, step, k) for f in (0.5, 1.5)]
            else:
                lines.append(line(samples, step, k))
        lines.append(line(1e6 * np.ones((COILS, READOUT)), step, flags=1 << 22))
    return lines
