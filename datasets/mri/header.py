"""The ISMRMRD XML header, as fastMRI and ISMRMRD files carry it; parsed without entities, so that it can do nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree

from invsolve.errors import UserError

_LIMIT = 2**24
#: Fields of view are stated in rounded millimetres: sizes that differ by less than this part are one.
_ROUNDING = 0.02


@dataclass(frozen=True)
class Header:
    """One encoding of a header.

    Attributes:
        encoded: matrix x (readout), y (phase), z of k-space.
        recon: matrix x, y, z of the image.
        step, partition: minimum, maximum, centre of kspace_encoding_step_1 and _2; None when absent.
        trajectory: such as "cartesian".
        noise_bandwidth: mean of the receiver's transmission of power over its bandwidth, 1 where the header does not say.
        encoded_view, recon_view: fields of view of k-space and of the image, x, y, z in mm; None when absent.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    step: tuple[int, int, int] | None
    partition: tuple[int, int, int] | None
    trajectory: str
    noise_bandwidth: float
    encoded_view: tuple[float, float, float] | None
    recon_view: tuple[float, float, float] | None

    def kept(self, matrix: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the image's field of view, of a k-space of so many points along readout and phase.

        They are points times the image's over the encoded field of view. The image's own matrix tells nothing where the
        scanner interpolates; it counts where both give one pixel size to a rounding, and where no field of view is stated.
        """
        rows, columns = (self._kept(axis, points) for axis, points in enumerate(matrix))
        return rows, columns

    def kept_depth(self, points: int) -> int:
        """The same of so many points along the depth."""
        return self._kept(2, points)

    def _kept(self, axis: int, points: int) -> int:
        stated, views = self.recon[axis], (self.encoded_view, self.recon_view)
        encoded, recon = (0.0 if view is None else view[axis] for view in views)
        if not (0 < encoded < math.inf and 0 < recon < math.inf):
            return min(points, stated)
        exact = points * recon / encoded
        size = stated if abs(exact - stated) <= max(1.0, _ROUNDING * stated) else round(exact)
        return min(max(size, 1), points)

    def columns(self, count: int) -> tuple[int, int] | None:
        """The [start, stop) of `count` phase columns that lie within the encoding limits."""
        if self.step is None:
            return None
        _, largest, centre = self.step
        first = count // 2 - centre
        return max(first, 0), min(first + largest + 1, count)


def parse_header(xml: bytes, where: str, encoding: int = 0) -> Header:
    """Read a header.

    Raises:
        UserError: not XML, with a document type (entities), or without encodedSpace and reconSpace.
    """
    remedy = "write the header again"
    # Entities are what makes XML dangerous (files read, memory blown up), and need a document type.
    if len(xml) > _LIMIT or b"<!DOCTYPE" in xml or b"<!ENTITY" in xml or b"\0" in xml.rstrip(b"\0"):
        raise UserError(f"{where}: has a document type or entities, or is no UTF-8, which is refused; {remedy}")
    try:
        root = ElementTree.fromstring(xml.rstrip(b"\0"))
    except ElementTree.ParseError as error:
        raise UserError(f"{where}: is no XML ({error}); {remedy}") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    encodings = root.findall("encoding")
    if not 0 <= encoding < len(encodings):
        raise UserError(f"{where}: has {len(encodings)} encodings, none of number {encoding}; {remedy}")
    section = encodings[encoding]
    system = root.find("acquisitionSystemInformation")
    name = "relativeReceiverNoiseBandwidth"
    stated = system is not None and system.find(name) is not None
    bandwidth = _number(system, name, where, float) if system is not None and stated else 1.0
    if not 0 < bandwidth <= 1:
        raise UserError(f"{where}: {name} is {bandwidth:g}, expected a number from 0 to 1; write the header again")
    return Header(
        encoded=_matrix(section, "encodedSpace", where),
        recon=_matrix(section, "reconSpace", where),
        step=_limits(section, 1, where),
        partition=_limits(section, 2, where),
        trajectory=(section.findtext("trajectory") or "").strip().lower(),
        noise_bandwidth=bandwidth,
        encoded_view=_view(section, "encodedSpace", where),
        recon_view=_view(section, "reconSpace", where),
    )


def _limits(encoding: ElementTree.Element, axis: int, where: str) -> tuple[int, int, int] | None:
    limits = encoding.find(f"encodingLimits/kspace_encoding_step_{axis}")
    if limits is None:
        return None
    first, last, centre = (int(_number(limits, name, where, int)) for name in ("minimum", "maximum", "center"))
    return first, last, centre


def _view(encoding: ElementTree.Element, space: str, where: str) -> tuple[float, float, float] | None:
    size = encoding.find(f"{space}/fieldOfView_mm")
    if size is None:
        return None
    x, y, z = (float(_number(size, axis, where, float)) for axis in "xyz")
    return x, y, z


def _matrix(encoding: ElementTree.Element, space: str, where: str) -> tuple[int, int, int]:
    matrix = encoding.find(f"{space}/matrixSize")
    if matrix is None:
        raise UserError(f"{where}: has no {space}/matrixSize; write the header again")
    x, y, z = (int(_number(matrix, axis, where, int)) for axis in "xyz")
    if min(x, y, z) < 1:
        raise UserError(f"{where}: {space} of {x} x {y} x {z} is empty; write the header again")
    return x, y, z


def _number(element: ElementTree.Element, name: str, where: str, kind: type[int] | type[float]) -> float:
    text = element.findtext(name)
    try:
        return kind(text or "")
    except ValueError:
        raise UserError(
            f"{where}: {element.tag}/{name} is {text!r}, expected a number; write the header again"
        ) from None
