"""Other libraries' linear operators as pairs of NumPy maps on rows; known by what they offer, none is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

Rows = Callable[[Any], Any]


class Pair:
    """The two directions of a foreign operator as maps of rows (B, ...), and what its library says of them.

    Attributes:
        library: its name, for messages.
        offers: the attributes by which its operators are known.
        hint: what may be wrong where the two are not transposes.
        image: the image's shape as the library has it, mostly without channels; None where it knows vectors alone.
        pixels: number of values of an image.
        measurement: likewise the measurement's shape; None where it is to be taken from what `forward` gives.
        complex_image: whether images are complex.
        precision: the dtype to compute in, None for any.

    Args:
        obj: the foreign operator.
    """

    library: ClassVar[str] = ""
    offers: ClassVar[tuple[str, ...]] = ()
    hint: str = ""
    image: tuple[int, ...] | None = None
    measurement: tuple[int, ...] | None = None
    complex_image: bool = False
    precision: Any = None

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    @property
    def pixels(self) -> int:
        return int(np.prod(self.image or ()))

    def forward(self, rows: Any) -> Any:
        """Rows (B, *image) to rows (B, *measurement), both of any shape with as many values."""
        return _each(self.one, rows, self.image)

    def adjoint(self, rows: Any) -> Any:
        """The transpose, conjugate for complex images."""
        return _each(self.back, rows, self.measurement)

    def one(self, x: Any) -> Any:
        """The measurement of one image."""
        raise NotImplementedError

    def back(self, y: Any) -> Any:
        """The transpose for one measurement."""
        raise NotImplementedError


def recognised(obj: Any) -> Pair | None:
    """The pair of a foreign operator, or None for what is none."""
    if isinstance(obj, np.ndarray) or hasattr(obj, "tocsr"):
        return Matrix(obj)
    return next((kind(obj) for kind in KINDS if all(hasattr(obj, name) for name in kind.offers)), None)


class Functions(Pair):
    """Two NumPy functions of one array each.

    Args:
        forward, adjoint: the functions.
        image: shape of what `forward` takes.
        complex_image: whether that is complex.
    """

    library = "NumPy"

    def __init__(
        self, forward: Callable[[Any], Any], adjoint: Callable[[Any], Any], image: tuple[int, ...], complex_image: bool
    ) -> None:
        super().__init__((forward, adjoint))
        self.image, self.complex_image = image, complex_image
        self.measurement = np.asarray(forward(np.zeros(image, np.complex64 if complex_image else np.float32))).shape

    def one(self, x: Any) -> Any:
        return self.obj[0](x)

    def back(self, y: Any) -> Any:
        return self.obj[1](y)


class MriNufft(Pair):
    """An mri-nufft operator of one batch: image (coils or 1, *shape), data (coils, samples)."""

    library = "mri-nufft"
    offers = ("op", "adj_op", "n_samples", "n_coils")
    hint = "with a density mri-nufft's adjoint is weighted, so make it with density=None"
    complex_image = True

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        channels = 1 if getattr(obj, "uses_sense", False) else int(obj.n_coils)
        self.image, self.measurement = (channels, *_shape(obj.shape)), (int(obj.n_coils), int(obj.n_samples))
        self.precision = np.empty(0, obj.dtype).real.dtype

    def one(self, x: Any) -> Any:
        return np.asarray(self.obj.op(x[None])).reshape(self.measurement)

    def back(self, y: Any) -> Any:
        return np.asarray(self.obj.adj_op(y[None])).reshape(self.image)


class Sigpy(Pair):
    """A sigpy `Linop`; whether it wants complex images is told by what it makes of real ones."""

    library = "sigpy"
    offers = ("ishape", "oshape", "apply", "H")

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        self.image, self.measurement = _shape(obj.ishape), _shape(obj.oshape)
        self.complex_image = bool(np.iscomplexobj(obj.apply(np.zeros(self.image, np.float32))))

    def one(self, x: Any) -> Any:
        return self.obj.apply(x)

    def back(self, y: Any) -> Any:
        return self.obj.H.apply(y)


class Odl(Pair):
    """An ODL operator; its adjoint belongs to weighted inner products, and the weights are taken out."""

    library = "ODL"
    offers = ("domain", "range", "is_linear", "adjoint")

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        self.image, self.measurement = _shape(obj.domain.shape), _shape(obj.range.shape)
        dtype = np.dtype(str(getattr(obj.domain, "dtype_identifier", obj.domain.dtype)))
        self.complex_image, self.precision = dtype.kind == "c", np.empty(0, dtype).real.dtype

    def one(self, x: Any) -> Any:
        return self.obj(self.obj.domain.element(x)).asarray()

    def back(self, y: Any) -> Any:
        weighted = self.obj.range.element(_weights(self.obj.range) * y)
        return self.obj.adjoint(weighted).asarray() / _weights(self.obj.domain)


class Scipy(Pair):
    """SciPy's `LinearOperator`, and what derives from it."""

    library = "SciPy"
    offers = ("shape", "dtype", "matmat", "rmatmat")

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        dtype = np.dtype(float if obj.dtype is None else obj.dtype)
        self.complex_image = dtype.kind == "c"
        self.precision = np.empty(0, dtype).real.dtype if dtype.kind in "fc" else None

    @property
    def pixels(self) -> int:
        return int(self.obj.shape[1])

    def forward(self, rows: Any) -> Any:
        return self.obj.matmat(rows.reshape(len(rows), -1).T).T

    def adjoint(self, rows: Any) -> Any:
        return self.obj.rmatmat(rows.reshape(len(rows), -1).T).T


class Pylops(Scipy):
    """A PyLops operator, which knows the shapes of image and data."""

    library = "PyLops"
    offers = ("dims", "dimsd", "matmat", "rmatmat")

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        self.image, self.measurement = _shape(obj.dims), _shape(obj.dimsd)
        # Of an operator of real images with complex data it says that it is not complex linear.
        self.complex_image = self.complex_image and bool(obj.clinear)


class Astra(Scipy):
    """ASTRA's `OpTomo`, which knows the shapes of volume and sinogram."""

    library = "ASTRA"
    offers = ("vshape", "sshape", "matmat", "rmatmat")
    hint = "ASTRA's CUDA projectors are not transposes of each other"

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        self.image, self.measurement = _shape(obj.vshape), _shape(obj.sshape)

    # Its vectors must have one axis, where SciPy's own products of a matrix hand it columns.
    def forward(self, rows: Any) -> Any:
        return _each(self.obj.matvec, rows, (-1,))

    def adjoint(self, rows: Any) -> Any:
        return _each(self.obj.rmatvec, rows, (-1,))


class Matrix(Pair):
    """A matrix, dense or sparse."""

    library = "matrix"

    def __init__(self, obj: Any) -> None:
        super().__init__(obj)
        self.complex_image = np.dtype(obj.dtype).kind == "c"

    @property
    def pixels(self) -> int:
        return int(self.obj.shape[1])

    def forward(self, rows: Any) -> Any:
        return (self.obj @ rows.reshape(len(rows), -1).T).T

    def adjoint(self, rows: Any) -> Any:
        return (self.obj.conj().T @ rows.reshape(len(rows), -1).T).T


#: In the order in which they are tried: what is more than a SciPy operator comes before it.
KINDS: tuple[type[Pair], ...] = (MriNufft, Sigpy, Odl, Pylops, Astra, Scipy)


def _shape(numbers: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in np.atleast_1d(numbers))


def _each(function: Rows, rows: Any, shape: Sequence[int] | None) -> Any:
    return np.stack([np.asarray(function(row.reshape(shape))) for row in rows])


def _weights(space: Any) -> Any:
    """The weights of an ODL space's inner product, of the space's shape or a number."""
    weighting = getattr(space, "weighting", None)
    own: Any = getattr(weighting, "const", None)
    if own is None:
        own = getattr(weighting, "array", 1.0)
    own = own.asarray() if hasattr(own, "asarray") else own
    parts = getattr(space, "spaces", None)
    if parts is None:
        return own
    own = np.asarray(own).reshape(-1, *[1] * (len(space.shape) - 1))
    return own * np.stack([np.broadcast_to(_weights(part), part.shape) for part in parts])
