"""The ISMRMRD XML header, as fastMRI and ISMRMRD files carry it; parsed without entities, so that it can do nothing."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from invsolve.errors import UserError

_LIMIT = 2**24


@dataclass(frozen=True)
class Header:
    """One encoding of a header.

    Attributes:
        encoded: matrix x (readout), y (phase), z of k-space.
        recon: matrix x, y, z of the image.
        step: kspace_encoding_step_1 minimum, maximum, centre; None when absent.
        trajectory: such as "cartesian".
        field_of_view: of the image, mm.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    step: tuple[int, int, int] | None
    trajectory: str
    field_of_view: tuple[float, float, float] | None

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
    limits = section.find("encodingLimits/kspace_encoding_step_1")
    step = None
    if limits is not None:
        step = tuple(_number(limits, name, where, int) for name in ("minimum", "maximum", "center"))
    size = section.find("reconSpace/fieldOfView_mm")
    field = None if size is None else tuple(_number(size, axis, where, float) for axis in "xyz")
    return Header(
        encoded=_matrix(section, "encodedSpace", where),
        recon=_matrix(section, "reconSpace", where),
        step=step,  # type: ignore[arg-type]
        trajectory=(section.findtext("trajectory") or "").strip().lower(),
        field_of_view=field,  # type: ignore[arg-type]
    )


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
