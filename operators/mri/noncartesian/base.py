"""What non-Cartesian MRI of images and of volumes have in common: sampling, its transpose, and A'A by convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import called, matching
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.nufft import LEAST, Nufft
from invsolve.numerics.toeplitz import convolved, doubled, spectrum
from invsolve.operators.mri.noncartesian.density import areas_of_spokes, pipe_menon
from invsolve.operators.mri.noncartesian.off_resonance import Segments, largest_phase, segmented, segments_for

#: Segments beyond which a field map or a readout is taken to be in another unit.
_MOST_SEGMENTS = 300
#: Bytes that the spectra of A'A may take; beyond, it is forward and adjoint.
_SPECTRA_BYTES = 2 * 2**30
#: Bytes of padded images at once, off a CPU.
_DEVICE_BYTES = 1024 * 2**20


class NonCartesian(MaskableOperator):
    """Samples of the Fourier transform of images at any points, through receive coils and a field map.

    Attributes:
        trajectory_bits: the trajectory's float64 numbers as int64, so that `.float()` leaves them as they are: single precision
            would move samples at the edge of k-space by 1e-5 cycles.
        times: of the samples, in s, shaped like the trajectory without its last axis; with a field map.

    Args:
        trajectory: (samples, dimensions) or (spokes, samples, dimensions), float64, in cycles per field of view.
        size: of the images.
        coil_maps: (coils, *size), complex, or pairs of real numbers; None for one coil of sensitivity 1.
        b0_map: (*size), in Hz; None without off-resonance.
        readout_time: of a readout in s, or the times of its samples.
        tolerance: relative error of the sampling.

    Raises:
        UserError: shapes disagree, what is out of range or not finite, or one of field map and times alone.
    """

    complex_image = True
    closed_forms = "A'A by convolution, density compensation, SENSE"
    group_layout = "circle"
    #: Whether the directions of spokes are known to be spread evenly.
    even_spokes: bool = False

    def __init__(
        self,
        trajectory: Tensor,
        size: Sequence[int],
        coil_maps: Tensor | None,
        b0_map: Tensor | None,
        readout_time: float | Tensor | None,
        tolerance: float,
    ) -> None:
        super().__init__()
        self.image_shape = (1, *size)
        if not LEAST <= tolerance <= 1e-2:
            raise UserError(f"{self._title}: tolerance must be from {LEAST:g} to 0.01, got {tolerance:g}")
        self.tolerance = tolerance
        self.trajectory_bits = trajectory.contiguous().view(torch.int64)
        if coil_maps is not None:
            self.coil_maps = coil_maps
        if (b0_map is None) != (readout_time is None):
            raise UserError(f"{self._title}: give b0_map= (Hz) and readout_time= (s) together, or neither")
        if b0_map is not None and readout_time is not None:
            field = as_array(b0_map, f"{self._title}: b0_map")
            if field.is_complex() or tuple(field.shape) != tuple(size) or not bool(field.isfinite().all()):
                raise UserError(
                    f"{self._title}: b0_map must be real and finite, {tuple(size)}, in Hz; got {field.dtype} {tuple(field.shape)}"
                )
            self.b0_map, self.times = field.float(), self._times(readout_time).float()
            phase = largest_phase(self.b0_map, self.times)
            if phase > _MOST_SEGMENTS or segments_for(phase, tolerance) > _MOST_SEGMENTS:
                raise UserError(
                    f"{self._title}: b0_map spans {float(field.max() - field.min()):.4g} Hz and the readout "
                    f"{float(self.times.max() - self.times.min()):.4g} s, {phase / math.pi * 2:.3g} cycles, more than can be "
                    "segmented; give b0_map in Hz and readout_time in seconds"
                )

    @property
    def _title(self) -> str:
        return f"operator {called(self)!r}"

    @property
    def trajectory(self) -> Tensor:
        """In cycles per field of view, float64, as it was given or made."""
        return self.trajectory_bits.view(torch.float64)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the images."""
        assert self.image_shape is not None
        return self.image_shape[1:]

    @property
    def coils(self) -> int:
        """Number of receive coils."""
        return len(self.coil_maps) if "coil_maps" in self._buffers else 1

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        """Each spoke, arm or readout is a group; each sample, where the trajectory has no axis of them."""
        shape = self.trajectory_bits.shape[:-1]
        ones = [1] * (len(shape) - 1)
        return torch.arange(shape[0], device=self.trajectory_bits.device).view(1, -1, *ones)

    def group_coordinates(self) -> dict[str, Tensor]:
        """In cycles per field of view, of samples "k_row" and "k_column", of spokes and arms "k_row_first" to "k_column_last".

        In two dimensions arms also have an "angle": the direction from first sample to last, in degrees from 0 to 360,
        anticlockwise from the axis of the columns.
        """
        k = self.trajectory.cpu()
        names = [f"k_{axis}" for axis in ("depth", "row", "column")[-k.shape[-1] :]]
        if k.ndim == 2:
            return dict(zip(names, k.unbind(-1), strict=True))
        k = k.flatten(1, -2)
        ends = {"first": k[:, 0], "last": k[:, -1]}
        found = {
            f"{name}_{end}": row for end, at in ends.items() for name, row in zip(names, at.unbind(-1), strict=True)
        }
        along = ends["last"] - ends["first"]
        if len(names) == 2:
            found["angle"] = torch.atan2(-along[:, 0], along[:, 1]).rad2deg() % 360
        return found

    def _times(self, readout_time: float | Tensor) -> Tensor:
        shape = self.trajectory_bits.shape[:-1]
        if isinstance(readout_time, int | float):
            if not 0 < readout_time < math.inf:
                raise UserError(f"{self._title}: readout_time must be > 0 seconds, got {readout_time}")
            readout_time = torch.arange(shape[-1], dtype=torch.float64) * (readout_time / shape[-1])
        times = as_array(readout_time, f"{self._title}: readout_time")
        right = tuple(times.shape) in (tuple(shape), tuple(shape[-1:]))
        if not right or times.is_complex() or not bool(times.isfinite().all()):
            raise UserError(
                f"{self._title}: readout_time must be one number of seconds, or the time of each sample, {tuple(shape[-1:])} or "
                f"{tuple(shape)}, finite; got {tuple(times.shape)}"
            )
        return times.expand(shape).contiguous()

    def _points(self) -> Tensor:
        """In cycles per pixel, (points, dimensions)."""
        k = self.trajectory.flatten(0, -2)
        return k / torch.tensor(self.size, dtype=torch.float64, device=k.device)

    def _transform(self, like: Tensor) -> Nufft:
        """In the precision of `like`, on its device."""
        real = like.real.dtype
        return self.remembered(
            ("nufft", real, like.device), lambda: Nufft(self._points(), self.size, self.tolerance, real, like.device)
        )

    def _segments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (segments, points) and phases (segments, *size) of the field map."""

        def make() -> tuple[Tensor, Tensor]:
            parts = segmented(self.b0_map.double().cpu(), self.times.double().cpu().flatten(), self.tolerance)
            return parts.weights.to(like), parts.phases(self.b0_map.cpu()).to(like)

        return self.remembered(("segments", like.dtype, like.device), make)

    def _spectra(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of A'A for one coil: spectra (segments, *doubled size), and the phases around each, (segments, *size)."""
        real = like.real.dtype

        def make() -> tuple[Tensor, Tensor | None]:
            points, share = self._points().to(like.device), 1 / math.prod(self.size)
            if "b0_map" not in self._buffers:
                weights = torch.full((len(points),), share, dtype=torch.float64, device=like.device)
                return spectrum(points, weights, self.size, real)[None], None
            parts = self._difference_segments()
            rows = (parts.cardinal * share).to(like.device)
            spectra = [spectrum(points, row, self.size, real) for row in rows]
            return torch.stack(spectra), parts.phases(self.b0_map.cpu()).to(like)

        return self.remembered(("spectra", real, like.device), make)

    def _difference_segments(self) -> Segments:
        field, times = self.b0_map.double().cpu(), self.times.double().cpu().flatten()
        return segmented(field, times, self.tolerance, differences=True)

    def _fits(self, like: Tensor) -> bool:
        """Whether the spectra of A'A are small enough to be kept."""

        def count() -> int:
            if "b0_map" not in self._buffers:
                return 1
            return segments_for(2 * largest_phase(self.b0_map, self.times), self.tolerance)

        segments = self.remembered("segments of A'A", count)
        return segments * math.prod(doubled(self.size)) * like.real.element_size() <= _SPECTRA_BYTES

    def _sampled(self, images: Tensor) -> Tensor:
        """Images (rows, *size) at the points, (rows, points)."""
        transform = self._transform(images)
        if "b0_map" not in self._buffers:
            return transform.forward(images)
        weights, phases = self._segments(images)
        return torch.stack([(transform.forward(image * phases) * weights).sum(0) for image in images])

    def _gathered(self, values: Tensor) -> Tensor:
        """The transpose of `_sampled`."""
        transform = self._transform(values)
        if "b0_map" not in self._buffers:
            return transform.adjoint(values)
        weights, phases = (part.conj() for part in self._segments(values))
        return torch.stack([(transform.adjoint(row * weights) * phases).sum(0) for row in values])

    def _checked(self, x: Tensor) -> Tensor:
        if not x.is_complex():
            raise UserError(
                f"{self._title} takes complex images (B, 1, {', '.join(map(str, self.size))}), got {x.dtype}; "
                "use torch.complex(real, imaginary)"
            )
        return x

    def _share(self) -> float:
        return 1 / math.sqrt(math.prod(self.size))

    def forward(self, x: Tensor) -> Tensor:
        x = self._checked(x) * self._share()
        if "coil_maps" in self._buffers:
            x = x * matching(self.coil_maps, x)
        y = self._sampled(x.flatten(0, 1))
        return y.view(*x.shape[:2], *self.trajectory_bits.shape[:-1])

    def adjoint(self, y: Tensor) -> Tensor:
        wanted = (self.coils, *self.trajectory_bits.shape[:-1])
        if tuple(y.shape[1:]) != wanted:
            raise UserError(f"{self._title}: adjoint takes measurements {wanted}, got {tuple(y.shape[1:])}")
        x = self._gathered(y.reshape(len(y) * self.coils, -1)).view(len(y), self.coils, *self.size) * self._share()
        if "coil_maps" in self._buffers:
            x = (x * matching(self.coil_maps, x).conj()).sum(1, keepdim=True)
        return x

    def normal(self, x: Tensor) -> Tensor:
        """A'A x by convolution with the point-spread function, coil by coil (Wajer and Pruessmann 2001; Fessler 2005)."""
        if not self._fits(self._checked(x)):
            return super().normal(x)
        if x.device.type != "cpu":
            step = _DEVICE_BYTES // (len(x) * math.prod(doubled(self.size)) * x.element_size())
            return self._normal(x, max(1, step))
        # A coil of one image for each thread: what they are padded to fits in a CPU's caches.
        return torch.cat([self._normal(image, torch.get_num_threads()) for image in x.split(1)])

    def _normal(self, x: Tensor, coils: int) -> Tensor:
        """A'A of all images at once, so many coils at a time."""
        if "coil_maps" not in self._buffers:
            return self._convolved(x)
        total = torch.zeros_like(x)
        for maps in matching(self.coil_maps, x).split(coils):
            total = total + (self._convolved(x * maps) * maps.conj()).sum(1, keepdim=True)
        return total

    def _convolved(self, images: Tensor) -> Tensor:
        spectra, phases = self._spectra(images)
        if phases is None:
            return convolved(images, spectra[0])
        total = torch.zeros_like(images)
        for phase, response in zip(phases, spectra, strict=True):
            total = total + convolved(images * phase, response) * phase.conj()
        return total

    def density(self, like: Tensor) -> Tensor:
        """The area of k-space that each sample stands for, in (cycles per field of view)^dimensions.

        In closed form for equally spaced samples along spokes through the centre, else by Pipe and Menon's iteration.

        Args:
            like: a measurement, for precision and device.

        Returns:
            Real, shaped like the trajectory without its last axis.
        """
        shape = self.trajectory_bits.shape[:-1]

        def make() -> Tensor:
            points = self._points()
            areas = areas_of_spokes(points.view(self.trajectory_bits.shape), self.even_spokes)
            if areas is not None:
                return (areas * math.prod(self.size)).to(like.device, like.real.dtype)
            return pipe_menon(points, self.size).view(shape).to(like.device, like.real.dtype)

        return self.remembered(("density", like.real.dtype, like.device), make)

    @property
    def baseline_floor(self) -> float | None:
        return 1e-3 if "coil_maps" in self._buffers else None

    @property
    def ridge_by_noise(self) -> bool:
        return "coil_maps" in self._buffers

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        """Density-compensated gridding for one coil, SENSE (Pruessmann 2001; regularised by the noise) for several."""
        if "coil_maps" not in self._buffers:
            return self.adjoint(y * self.density(y))
        return super().baseline(y, sigma, CG(1e-4, 50) if solver is None else solver)
