"""Geometries in files: ours as JSON and TOML, Nikon's .xtekct against CIL's reading of it, RTK's XML against its matrices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import invsolve
from invsolve import Geometry, registry
from invsolve.contracts.arguments import ARRAY_FILES
from invsolve.datasets.hdf5 import write_scan
from invsolve.operators.ct.geometry import SUFFIXES
from tests.operators.test_ct_geometry import CONE, FAN, seen_at
from tests.support.types import offered

NIKON = {
    "Name": "skate",
    "VoxelsX": "5",
    "VoxelsY": "6",
    "VoxelsZ": "4",
    "VoxelSizeX": "0.5",
    "VoxelSizeY": "0.5",
    "VoxelSizeZ": "0.4",
    "SrcToObject": "50.0",
    "SrcToDetector": "120.0",
    "DetectorPixelsX": "19",
    "DetectorPixelsY": "17",
    "DetectorPixelSizeX": "0.9",
    "DetectorPixelSizeY": "0.8",
    "CentreOfRotationTop": "0.0",
    "CentreOfRotationBottom": "0.0",
    "Projections": "5",
    "InitialAngle": "12.5",
    "AngularStep": "31.0",
    "Units": "mm",
}


def nikon(path: Path, **changed: str | None) -> Path:
    lines = [f"{key}={value}" for key, value in (NIKON | changed).items() if value is not None]
    file = path / "skate.xtekct"
    file.write_text("\n".join(["[XTekCT]", *lines, "[Xrays]", "XraykV=120"]))
    return file


def seen_by_cil(element: tuple[int, ...], offset: float, roll: float, tilt: float) -> np.ndarray:
    """Row and column of the stored projections where a voxel appears, by CIL's NikonDataReader, written out.

    The source is the origin, the detector upright at y = 120, counted from its top right corner; the axis passes through
    (-offset, 50, 0), turned by `roll` and `tilt`; the object turns anticlockwise by 180 - initial - step k.
    """
    slice_, row, column = element
    # Half a turn about y from our image's axes, in which slices run down.
    place = np.array([-(column - 2.0) * 0.5, (2.5 - row) * 0.5, -(slice_ - 1.5) * 0.4])
    roll, tilt = math.radians(roll), math.radians(-tilt)
    about_y = np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    axis = about_x @ about_y @ [0, 0, 1]
    # The shortest rotation from z to the axis carries the object's frame.
    cross, cos = np.cross([0, 0, 1], axis), axis[2]
    k = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    lean = np.eye(3) + k + k @ k / (1 + cos)
    # Angles are counted from where the rays, seen along the axis, run along y.
    way = lean.T @ [0, 1, 0]
    zero = math.atan2(-way[0], way[1])
    found = []
    for view in range(5):
        angle = zero + math.radians(180 - 12.5 - 31.0 * view)
        turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        point = lean @ turn @ place + [-offset, 50, 0]
        x, z = point[0] * 120 / point[1], point[2] * 120 / point[1]
        found.append((8 - z / 0.8, 9 - x / 0.9))
    return np.array(found)


@pytest.mark.parametrize("element", [(0, 0, 0), (3, 1, 4), (2, 5, 2)])
@pytest.mark.parametrize(
    ("changed", "placed"),
    [
        ({}, (0.0, 0.0, 0.0)),
        ({"ObjectOffsetX": "0.7"}, (0.7, 0.0, 0.0)),
        ({"CentreOfRotationTop": "1.2", "CentreOfRotationBottom": "1.2"}, (1.2 * 50 / 120, 0.0, 0.0)),
        (
            {"CentreOfRotationTop": "1.2", "CentreOfRotationBottom": "-0.4"},
            (0.4 * 50 / 120, -math.degrees(math.atan2(1.6, 17 * 0.8)), 0.0),
        ),
        ({"ObjectOffsetX": "0.3", "ObjectRoll": "4.0", "ObjectTilt": "7.0"}, (0.3, 4.0, 7.0)),
    ],
)
def test_nikon(
    tmp_path: Path, element: tuple[int, ...], changed: dict[str, str], placed: tuple[float, float, float]
) -> None:
    g = Geometry.from_file(nikon(tmp_path, **changed))
    np.testing.assert_allclose(seen_at(g, element), seen_by_cil(element, *placed), atol=1e-9)
    assert (g.unit, g.beam, g.image_size) == ("mm", "cone", (4, 6, 5))


def test_nikon_upright_scans_have_fdk_and_one_row_is_a_fan(tmp_path: Path) -> None:
    g = Geometry.from_file(nikon(tmp_path))
    assert not g.vectors
    assert g.source_offset == 0
    fan = Geometry.from_file(nikon(tmp_path, DetectorPixelsY="1"))
    assert (fan.beam, fan.measurement_shape) == ("fan", (5, 19))
    assert Geometry.from_file(nikon(tmp_path, VoxelsX=None, VoxelsY=None, VoxelsZ=None)).image_size == (17, 19, 19)
    assert Geometry.from_file(nikon(tmp_path), image_size=[2, 3, 4]).image_size == (2, 3, 4)


#: Parameters and matrices of two projections, from the page on geometry of RTK's documentation; and one more of every kind.
RTK = """<?xml version="1.0"?>
<!DOCTYPE RTKGEOMETRY>
<RTKThreeDCircularGeometry version="3">
  <SourceToIsocenterDistance>1000</SourceToIsocenterDistance>
  <SourceToDetectorDistance>1536</SourceToDetectorDistance>
  <Projection>
    <GantryAngle>271.847274780273</GantryAngle>
    <ProjectionOffsetX>-117.056503295898</ProjectionOffsetX>
    <ProjectionOffsetY>-1.01195001602173</ProjectionOffsetY>
    <Matrix>
          -166.5093078829                   0   -1531.42837748039   -117056.503295898
        -1.01142410874151               -1536  0.0326206557691505   -1011.95001602173
       -0.999480303105996                   0  0.0322354417240802               -1000
    </Matrix>
  </Projection>
  MORE
</RTKThreeDCircularGeometry>
"""
MATRICES = [
    [
        [-166.5093078829, 0, -1531.42837748039, -117056.503295898],
        [-1.01142410874151, -1536, 0.0326206557691505, -1011.95001602173],
        [-0.999480303105996, 0, 0.0322354417240802, -1000],
    ]
]
DETECTOR: dict[str, Any] = {
    "image_size": [5, 6, 4],
    "pixel_size": 30.0,
    "detectors": 1024,
    "detector_rows": 768,
    "detector_spacing": 0.8,
    "row_spacing": 0.7,
}


def rtk_matrix(sid: float, sdd: float, angles: tuple[float, float, float], source: Any, offset: Any) -> np.ndarray:
    """M_P of RTK's documentation, factor by factor."""
    gantry, out, plane = (-math.radians(a) for a in angles)
    about_z = np.array([[math.cos(plane), -math.sin(plane), 0], [math.sin(plane), math.cos(plane), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, math.cos(out), -math.sin(out)], [0, math.sin(out), math.cos(out)]])
    about_y = np.array([[math.cos(gantry), 0, math.sin(gantry)], [0, 1, 0], [-math.sin(gantry), 0, math.cos(gantry)]])
    turn = np.eye(4)
    turn[:3, :3] = about_z @ about_x @ about_y
    if sdd == 0:
        flat = np.array([[1, 0, 0, -offset[0]], [0, 1, 0, -offset[1]], [0, 0, 0, 1]])
        return flat @ turn
    first = np.array([[1, 0, source[0] - offset[0]], [0, 1, source[1] - offset[1]], [0, 0, 1]])
    second = np.array([[-sdd, 0, 0, 0], [0, -sdd, 0, 0], [0, 0, 1, -sid]])
    third = np.eye(4)
    third[:2, 3] = -np.asarray(source)
    return first @ second @ third @ turn


def seen_by_rtk(matrices: list[Any], element: tuple[int, ...]) -> np.ndarray:
    """Row and column: slices of the image along RTK's y, rows along z, columns along x, the detector around its origin."""
    y, z, x = (np.array(element) - [2.0, 2.5, 1.5]) * 30.0
    out = []
    for matrix in matrices:
        u, v, w = np.asarray(matrix) @ [x, y, z, 1]
        out.append((v / w / 0.7 + 767 / 2, u / w / 0.8 + 1023 / 2))
    return np.array(out)


def rtk(path: Path, more: str = "", text: str = RTK) -> Path:
    file = path / "geometry.xml"
    file.write_text(text.replace("MORE", more))
    return file


@pytest.mark.parametrize("element", [(0, 0, 0), (4, 1, 3), (2, 5, 2)])
def test_rtk_is_its_documented_matrix(tmp_path: Path, element: tuple[int, ...]) -> None:
    g = Geometry.from_file(rtk(tmp_path), **DETECTOR)
    assert not g.vectors
    # The matrix is printed to 12 digits of numbers around 1e5, of a detector pixel of 0.7.
    np.testing.assert_allclose(seen_at(g, element), seen_by_rtk(MATRICES, element), atol=1e-6)


@pytest.mark.parametrize("element", [(0, 0, 0), (4, 1, 3), (2, 5, 2)])
@pytest.mark.parametrize("sdd", [1536, 0])
def test_rtk_of_every_kind(tmp_path: Path, element: tuple[int, ...], sdd: float) -> None:
    more = """<Projection><GantryAngle>33</GantryAngle><OutOfPlaneAngle>5</OutOfPlaneAngle><InPlaneAngle>-8</InPlaneAngle>
        <ProjectionOffsetX>3</ProjectionOffsetX><ProjectionOffsetY>-2</ProjectionOffsetY></Projection>"""
    offsets = [(-117.056503295898, -1.01195001602173), (3, -2)]
    source: tuple[float, float] = (0, 0)
    text = RTK.replace("<SourceToDetectorDistance>1536", f"<SourceToDetectorDistance>{sdd}")
    if sdd:
        more = more.replace("<InPlane", "<SourceOffsetX>7</SourceOffsetX><SourceOffsetY>-4</SourceOffsetY><InPlane")
        source = (7, -4)
    matrices = [
        rtk_matrix(1000, sdd, (271.847274780273, 0, 0), (0, 0), offsets[0]),
        rtk_matrix(1000, sdd, (33, 5, -8), source, offsets[1]),
    ]
    g = Geometry.from_file(rtk(tmp_path, more, text), **DETECTOR)
    assert len(g.vectors) == 2
    np.testing.assert_allclose(seen_at(g, element), seen_by_rtk(matrices, element), atol=1e-7)


def test_rtk_on_an_arc_around_the_source_is_curved(tmp_path: Path) -> None:
    text = RTK.replace("MORE", "").replace("<ProjectionOffsetX>-117.056503295898", "<ProjectionOffsetX>0")
    arc = "<RadiusCylindricalDetector>1536</RadiusCylindricalDetector><Projection>"
    g = Geometry.from_file(rtk(tmp_path, text=text.replace("<Projection>", arc)), **DETECTOR)
    assert g.curved
    with pytest.raises(invsolve.UserError, match="a radius of 900"):
        Geometry.from_file(rtk(tmp_path, text=text.replace("<Projection>", arc.replace("1536", "900"))), **DETECTOR)


@pytest.mark.parametrize("suffix", ["json", "toml"])
@pytest.mark.parametrize("given", [FAN | {"unit": "µm"}, CONE | {"feed": 3.0, "curved": True}, {"image_size": 8}])
def test_a_file_keeps_the_geometry(tmp_path: Path, suffix: str, given: dict[str, Any]) -> None:
    path = tmp_path / f"scan.{suffix}"
    g = Geometry(**{"angles": [0.1, 1e-7, 170.0]} | given)
    g.to_file(path)
    assert Geometry.from_file(path) == g
    assert offered(invsolve.operator("ct", geometry=str(path))).geometry == g


_SIZES = "[XTekCT]\nSrcToObject=3\nSrcToDetector=9\nDetectorPixelsX=4\nDetectorPixelsY=2\n"
WRONG: list[tuple[str, str, str]] = [
    ("scan.yaml", "beam: fan", "are read from .json, .toml, .xtekct, .xml"),
    ("scan.toml", "beam = ", "is no TOML"),
    ("scan.toml", "detector = 3\nimage_size = 8", "unknown entry 'detector'"),
    ("scan.json", '{"image_size": 1e999}', "no number where one belongs"),
    ("scan.json", '{"image_size": 8, "angles": 1000000000000}', "from 1 to 1048576"),
    ("scan.json", "[" * 200000, "is no JSON"),
    ("scan.json", "\udcff", "is no text"),
    ("scan.xtekct", "SrcToObject=3", "is no .xtekct file"),
    ("scan.xtekct", "[Xrays]\nXraykV=120", r"no section \[XTekCT\]"),
    ("scan.xtekct", "[XTekCT]\nSrcToObject=3", "entry SrcToDetector is missing"),
    ("scan.xtekct", "[XTekCT]\nSrcToObject=3\nSrcToDetector=far", "SrcToDetector='far' is no number"),
    ("scan.xtekct", "[XTekCT]\nSrcToObject=3\nSrcToDetector=2", "must be above 0, in this order"),
    ("scan.xtekct", "[XTekCT]\nSrcToObject=3\nSrcToDetector=9\nDetectorPixelsX=1e12", "a whole number from 1 to"),
    ("scan.xml", "<a/>", "is XML of 'a', expected RTKThreeDCircularGeometry"),
    ("scan.xml", "<RTKThreeDCircularGeometry>", "is no XML"),
    ("scan.xml", "<RTKThreeDCircularGeometry/>", "has no Projection"),
    (
        "scan.xml",
        "<RTKThreeDCircularGeometry><Projection><GantryAngle>x</GantryAngle></Projection></RTKThreeDCircularGeometry>",
        "GantryAngle is 'x', expected a number",
    ),
    (
        "scan.xml",
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><RTKThreeDCircularGeometry>&b;</RTKThreeDCircularGeometry>',
        "document type that declares XML entities",
    ),
    # The entity is in the type that is not read: without it, 1&b;2 would be 12.
    (
        "scan.xml",
        '<!DOCTYPE a SYSTEM "a.dtd"><RTKThreeDCircularGeometry><Projection><GantryAngle>1&b;2</GantryAngle></Projection>'
        "</RTKThreeDCircularGeometry>",
        "document type that declares XML entities",
    ),
    ("scan.xml", '<?xml version="1.0" encoding="none-such"?><RTKThreeDCircularGeometry/>', "is no XML"),
    ("scan.xtekct", _SIZES + "DetectorPixelSizeX=0\nDetectorPixelSizeY=1", "DetectorPixelSizeX=0 .* must be above 0"),
    ("scan.xtekct", _SIZES + "DetectorPixelSizeX=1\nDetectorPixelSizeY=-1", "DetectorPixelSizeY=-1 must be above 0"),
    ("scan.json", '{"image_size": 8, "angles": [[1, 2], [3, 4]]}', "one list of degrees, got 2 axes"),
    ("scan.json", '{"image_size": 8, "unit": ["mm"]}', "unit must be the name of a length"),
    (
        "scan.xml",
        '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><RTKThreeDCircularGeometry>&c;</RTKThreeDCircularGeometry>',
        "document type that declares XML entities",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_what_is_no_geometry_is_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(invsolve.UserError, match=message) as caught:
        Geometry.from_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_files_that_are_not_there_or_say_too_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(invsolve.UserError, match="cannot be read"):
        Geometry.from_file(tmp_path / "none.toml")
    with pytest.raises(invsolve.UserError, match=r"also needs image_size, detectors, detector_rows, detector_spacing"):
        Geometry.from_file(rtk(tmp_path))
    with pytest.raises(invsolve.UserError, match=r"written as \.json or \.toml"):
        Geometry(image_size=8, angles=3).to_file(tmp_path / "scan.xml")
    monkeypatch.setattr("invsolve.operators.ct.geometry._LARGEST_FILE", 100)
    with pytest.raises(invsolve.UserError, match="too many for a geometry"):
        Geometry.from_file(rtk(tmp_path))


@pytest.mark.parametrize("suffix", [*SUFFIXES, *ARRAY_FILES])
def test_a_scan_file_names_no_other_file(tmp_path: Path, suffix: str) -> None:
    operator = invsolve.operator("ct", geometry=Geometry(**FAN))
    operator.parameters_given = {"geometry": f"other{suffix.upper()}"}
    write_scan(tmp_path / "scan.h5", np.zeros((1, 6, 13), dtype=np.float32), operator, None)
    layout = registry.find("layout", "invsolve")()
    with pytest.raises(invsolve.UserError, match="which is not followed"):
        layout.open(tmp_path / "scan.h5", invsolve.make)
