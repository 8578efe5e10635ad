"""Geometries of scans: rays against trigonometry, the conventions of ASTRA and CIL against what they document, text, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import Geometry, registry
from invsolve.datasets.hdf5 import write_scan
from tests.support.types import Cli, offered

DEGREES = [0.0, 17.0, 90.0, 133.3, 200.0, 301.0]
FAN: dict[str, Any] = {
    "beam": "fan",
    "image_size": [8, 10],
    "angles": DEGREES,
    "detectors": 13,
    "source_distance": 30.0,
}
CONE: dict[str, Any] = {"beam": "cone", "image_size": [4, 6, 5], "angles": DEGREES, "source_distance": 30.0}
CONE |= {"detectors": 9, "detector_rows": 7, "detector_spacing": 1.3, "row_spacing": 1.1, "detector_distance": 12.0}


def seen_at(g: Geometry, element: tuple[int, ...]) -> np.ndarray:
    """Where an element of the image's array appears on the detector: (views, row index, column index), by intersection."""
    views = g.views()
    sizes = np.array([g.pixel_size, -g.pixel_size, g.slice_thickness])[: g.dimensions]
    middle = (np.array(g.image_size) - 1) / 2
    place = (np.array(element) - middle)[::-1] * sizes + np.array(g.image_offset)
    found = []
    for k in range(len(g.angles)):
        way = views.source[k] if g.beam == "parallel" else place - views.source[k]
        # place + t way = middle + a u + m v
        columns = [views.u[k], *([views.v[k]] if g.dimensions == 3 else []), -way]
        a, *rest = np.linalg.solve(np.stack(columns, 1), place - views.middle[k])
        row = np.interp(rest[0], views.m, np.arange(len(views.m))) if g.dimensions == 3 else 0
        found.append((row, np.interp(a, views.a, np.arange(len(views.a)))))
    return np.array(found)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("distance", [0.0, 25.0])
def test_rays_of_a_fan_are_those_of_trigonometry(curved: bool, distance: float) -> None:
    g = Geometry(**FAN | {"curved": curved, "detector_distance": distance, "centre": 5.2})
    reach = 30 + distance
    along = (np.arange(13) - 5.2) * g.detector_spacing / reach
    gamma = along if curved else np.arctan(along)
    degrees, s = g.lines()
    turned = np.mod(degrees - np.array(DEGREES)[:, None] + np.rad2deg(gamma) + 180, 360) - 180
    assert np.abs(turned).max() < 1e-9
    np.testing.assert_allclose(s, np.broadcast_to(30 * np.sin(gamma), s.shape), atol=1e-12)


def test_an_image_off_the_axis_shifts_the_rays() -> None:
    g = Geometry(image_size=8, angles=DEGREES, detectors=9, image_offset=(1.5, -0.7))
    angle = np.deg2rad(DEGREES)[:, None]
    np.testing.assert_allclose(g.lines()[1], g.positions() - 1.5 * np.cos(angle) + 0.7 * np.sin(angle), atol=1e-12)


def test_roll_tilt_and_feed_move_what_they_say() -> None:
    quarter = Geometry(**CONE | {"roll": 90.0}).views()
    np.testing.assert_allclose(quarter.u, np.broadcast_to([0, 0, 1], quarter.u.shape), atol=1e-12)
    angle = np.deg2rad(DEGREES)
    tilted = Geometry(**CONE | {"tilt": 30.0}).views()
    np.testing.assert_allclose(tilted.source[:, 2], -15, atol=1e-12)
    np.testing.assert_allclose(tilted.source[:, 0], 30 * math.sqrt(0.75) * np.sin(angle), atol=1e-12)
    np.testing.assert_allclose(tilted.v[:, 2], math.sqrt(0.75), atol=1e-12)
    helix = Geometry(**CONE | {"feed": 36.0}).views()
    np.testing.assert_allclose(helix.source[:, 2], (np.array(DEGREES) - 150.5) / 10, atol=1e-12)
    np.testing.assert_allclose(helix.middle[:, 2], helix.source[:, 2])


def test_vectors_of_a_scan_are_the_scan() -> None:
    g = Geometry(**FAN | {"detector_distance": 9.0, "centre": 5.2, "source_offset": 0.4})
    table = g.to_astra()[0]["Vectors"]
    again = Geometry(beam="fan", image_size=[8, 10], detectors=13, vectors=table)
    np.testing.assert_allclose(again.lines(), g.lines(), atol=1e-9)
    assert len(again.angles) == len(DEGREES)


# ASTRA: what its documentation says of each type, for an element of an array.
ASTRA_2D = {"GridRowCount": 7, "GridColCount": 9, "option": {"WindowMinX": -9.0, "WindowMaxX": 9.0, "WindowMinY": -7.0}}
ASTRA_2D["option"]["WindowMaxY"] = 7.0
RADIANS = np.deg2rad(DEGREES)


@pytest.mark.parametrize("element", [(0, 0), (2, 7), (6, 3)])
def test_astra_parallel_and_fan_flat(element: tuple[int, int]) -> None:
    x, y = 2.0 * (element[1] - 4), 2.0 * (3 - element[0])  # the first row is the uppermost
    along, depth = x * np.cos(RADIANS) + y * np.sin(RADIANS), y * np.cos(RADIANS) - x * np.sin(RADIANS)
    projection = {"type": "parallel", "DetectorWidth": 1.5, "DetectorCount": 40, "ProjectionAngles": RADIANS}
    wanted = along / 1.5 + 19.5
    np.testing.assert_allclose(seen_at(Geometry.from_astra(projection, ASTRA_2D), element)[:, 1], wanted, atol=1e-9)
    fan = projection | {"type": "fanflat", "DistanceOriginSource": 50.0, "DistanceOriginDetector": 30.0}
    wanted = along * 80 / (50 + depth) / 1.5 + 19.5
    np.testing.assert_allclose(seen_at(Geometry.from_astra(fan, ASTRA_2D), element)[:, 1], wanted, atol=1e-9)
    way = np.stack([np.sin(RADIANS), -np.cos(RADIANS)], 1)
    across = 1.5 * np.stack([np.cos(RADIANS), np.sin(RADIANS)], 1)
    vec = {"type": "fanflat_vec", "DetectorCount": 40, "Vectors": np.concatenate([50 * way, -30 * way, across], 1)}
    np.testing.assert_allclose(seen_at(Geometry.from_astra(vec, ASTRA_2D), element)[:, 1], wanted, atol=1e-9)


@pytest.mark.parametrize("element", [(0, 0, 0), (3, 1, 4), (2, 5, 2)])
def test_astra_cone_and_parallel3d(element: tuple[int, int, int]) -> None:
    # In ASTRA's volumes y grows with the row.
    z, y, x = element[0] - 1.5, element[1] - 2.5, element[2] - 2.0
    volume = {"GridSliceCount": 4, "GridRowCount": 6, "GridColCount": 5}
    along, depth = x * np.cos(RADIANS) + y * np.sin(RADIANS), y * np.cos(RADIANS) - x * np.sin(RADIANS)
    grid = {"DetectorSpacingX": 1.3, "DetectorSpacingY": 1.1, "DetectorColCount": 19, "DetectorRowCount": 17}
    cone = {"type": "cone", "ProjectionAngles": RADIANS, **grid}
    cone |= {"DistanceOriginSource": 30.0, "DistanceOriginDetector": 12.0}
    grown = 42 / (30 + depth)
    wanted = np.stack([z * grown / 1.1 + 8, along * grown / 1.3 + 9], 1)
    g = Geometry.from_astra(cone, volume)
    np.testing.assert_allclose(seen_at(g, element), wanted, atol=1e-9)
    back = Geometry.from_astra(*g.to_astra())
    np.testing.assert_allclose(seen_at(back, element), wanted, atol=1e-9)
    flat = seen_at(Geometry.from_astra({"type": "parallel3d", "ProjectionAngles": RADIANS, **grid}, volume), element)
    np.testing.assert_allclose(flat, np.stack([z / 1.1 + 8 + 0 * along, along / 1.3 + 9], 1), atol=1e-9)


SCANS: dict[str, dict[str, Any]] = {
    "parallel": {"image_size": [8, 10], "angles": DEGREES, "detectors": 13, "centre": 5.2, "pixel_size": 0.5},
    "fan": FAN | {"centre": 5.2, "detector_distance": 9.0, "image_offset": (0.3, -0.2)},
    "cone": CONE | {"centre": 3.2, "row_centre": 2.4, "tilt": 10.0, "roll": 4.0, "slice_thickness": 0.8},
    "parallel 3-D": {"image_size": [4, 6, 5], "angles": DEGREES, "tilt": 20.0, "detectors": 9, "detector_rows": 11},
}


@pytest.mark.parametrize("name", SCANS)
def test_to_astra_and_back(name: str) -> None:
    g = Geometry(**SCANS[name])
    back = Geometry.from_astra(*g.to_astra())
    for element in ((0,) * g.dimensions, tuple(n - 2 for n in g.image_size)):
        np.testing.assert_allclose(seen_at(back, element), seen_at(g, element), atol=1e-9)
    assert back.image_offset == pytest.approx(g.image_offset)
    assert (back.slice_thickness, back.pixel_size) == pytest.approx((g.slice_thickness, g.pixel_size))


def cil(description: dict[str, Any]) -> tuple[Any, Any]:
    """Objects with the attributes of CIL's geometries, as its constructors fill them."""
    kind = description["create"].removeprefix("create_")[:-2].lower()
    deep, system = description["create"].endswith("3D"), description["system"]
    zero = [0.0, 0.0, 0.0] if deep else [0.0, 0.0]
    detector = SimpleNamespace(
        position=system["detector_position"],
        direction_x=system.get("detector_direction_x", [1, 0, 0] if deep else [1, 0]),
        direction_y=system.get("detector_direction_y", [0, 0, 1]),
    )
    axis = SimpleNamespace(
        position=system.get("rotation_axis_position", zero), direction=system.get("rotation_axis_direction", [0, 0, 1])
    )
    parts = SimpleNamespace(detector=detector, rotation_axis=axis, units=system.get("units", "units distance"))
    if kind == "parallel":
        parts.ray = SimpleNamespace(direction=system["ray_direction"])
    else:
        parts.source = SimpleNamespace(position=system["source_position"])
    angles = SimpleNamespace(
        angle_data=np.array(description["angles"]["angles"]),
        initial_angle=description["angles"]["initial_angle"],
        angle_unit=description["angles"]["angle_unit"],
    )
    config = SimpleNamespace(system=parts, angles=angles, panel=SimpleNamespace(**description["panel"]))
    image = {"center_x": 0, "center_y": 0, "center_z": 0} | description["image"]
    return SimpleNamespace(geom_type=kind, config=config), SimpleNamespace(**image)


@pytest.mark.parametrize("name", SCANS)
def test_to_cil_and_back(name: str) -> None:
    g = Geometry(**SCANS[name], unit="mm")
    back = Geometry.from_cil(*cil(g.to_cil()))
    for element in ((0,) * g.dimensions, tuple(n - 2 for n in g.image_size)):
        np.testing.assert_allclose(seen_at(back, element), seen_at(g, element), atol=1e-9)
    assert back.unit == "mm"


@pytest.mark.parametrize("element", [(0, 0, 0), (3, 1, 4), (2, 5, 2)])
@pytest.mark.parametrize("origin", ["bottom-left", "top-right"])
def test_cil_turns_the_object_anticlockwise(element: tuple[int, int, int], origin: str) -> None:
    """As CIL documents it: the object turns around the axis, rows of the image go up, the panel counts from its origin."""
    z, y, x = 0.8 * (element[0] - 1.5), element[1] - 2.5, element[2] - 2.0
    axis = np.array([0.7, -0.4])
    turned_x, turned_y = x * np.cos(RADIANS) - y * np.sin(RADIANS), x * np.sin(RADIANS) + y * np.cos(RADIANS)
    description: dict[str, Any] = {
        "create": "create_Cone3D",
        "system": {"source_position": [0.7, -30, 0], "detector_position": [0.7, 12, 0]},
        "angles": {"angles": DEGREES, "initial_angle": 0.0, "angle_unit": "degree"},
        "panel": {"num_pixels": (19, 17), "pixel_size": (1.3, 1.1), "origin": origin},
        "image": {"voxel_num_x": 5, "voxel_num_y": 6, "voxel_num_z": 4, "voxel_size_x": 1, "voxel_size_y": 1},
    }
    description["system"]["rotation_axis_position"] = [*axis, 0]
    description["image"]["voxel_size_z"] = 0.8
    grown = 42 / (30 + turned_y + axis[1])
    sign = 1 if origin == "bottom-left" else -1
    wanted = np.stack([sign * z * grown / 1.1 + 8, sign * turned_x * grown / 1.3 + 9], 1)
    np.testing.assert_allclose(seen_at(Geometry.from_cil(*cil(description)), element), wanted, atol=1e-9)


def test_text_is_the_geometry(tmp_path: Path) -> None:
    for given in (FAN, CONE, {"image_size": 8, "angles": 3}):
        g = Geometry(**given)
        assert Geometry.from_text(g.to_text()) == g
        assert hash(Geometry.from_text(g.to_text())) == hash(g)
        (tmp_path / "scan.json").write_text(g.to_text())
        assert Geometry.from_text(str(tmp_path / "scan.json")) == g
    vectors = Geometry(beam="fan", image_size=8, detectors=9, vectors=Geometry(**FAN).to_astra()[0]["Vectors"])
    assert Geometry.from_text(vectors.to_text()) == vectors
    assert "6 views from 0 to 301 degrees, 13 detectors of 1 mm" in str(Geometry(**FAN, unit="mm"))


def test_a_plot_shows_image_sources_and_detector() -> None:
    ax = Geometry(**FAN, unit="mm").plot(views=(0, 2))
    assert ax.get_xlabel() == "x / mm"
    sources = ax.lines[-1].get_xydata()
    np.testing.assert_allclose(np.hypot(*sources.T), 30)
    ax.figure.clear()


def test_simple_keywords_and_geometry_are_one_operator(tmp_path: Path) -> None:
    simple = invsolve.operator("ct", image_size=[8, 10], angles=DEGREES, detectors=13, centre=5.2)
    g = offered(simple).geometry
    assert g == Geometry(image_size=[8, 10], angles=DEGREES, detectors=13, centre=5.2)
    (tmp_path / "scan.json").write_text(g.to_text())
    x = torch.rand(1, 1, 8, 10, generator=torch.Generator().manual_seed(0))
    for given in (g, g.to_text(), json.loads(g.to_text()), str(tmp_path / "scan.json")):
        other = invsolve.operator("ct", geometry=given)
        assert torch.equal(other(x), simple(x))


@pytest.mark.parametrize("how", ["object", "table", "text", "file"])
def test_a_scan_file_keeps_its_geometry(tmp_path: Path, how: str, cli: Cli) -> None:
    g = Geometry(**FAN, unit="mm")
    (tmp_path / "fan.json").write_text(g.to_text())
    ways: dict[str, Any] = {"object": g, "table": FAN | {"unit": "mm"}, "text": g.to_text()}
    operator = invsolve.operator("ct", geometry=ways.get(how, str(tmp_path / "fan.json")))
    (tmp_path / "fan.json").unlink()
    y = operator(torch.rand(2, 1, 8, 10, generator=torch.Generator().manual_seed(0)))
    write_scan(tmp_path / "scan.h5", y.numpy(), operator, None)
    from_file = registry.find("layout", "invsolve")().open(tmp_path / "scan.h5", invsolve.make)
    assert from_file.operator.geometry == g
    assert from_file.unit == "1/mm"
    _, told, _ = cli("inspect", str(tmp_path / "scan.h5"))
    assert '  operator  ct, geometry={"beam": "fan", "image_size": [8, 10]' in told
    assert max(len(line) for line in told.splitlines() if line.startswith("  operator")) < 120


def test_a_scan_file_that_names_another_file_is_refused(tmp_path: Path) -> None:
    g = Geometry(**FAN)
    operator = invsolve.operator("ct", geometry=g)
    operator.parameters_given = {"geometry": "fan.json"}
    write_scan(tmp_path / "scan.h5", operator(torch.zeros(1, 1, 8, 10)).numpy(), operator, None)
    (tmp_path / "fan.json").write_text(g.to_text())
    with pytest.raises(invsolve.UserError, match=r"geometry'? names the file 'fan\.json'"):
        registry.find("layout", "invsolve")().open(tmp_path / "scan.h5", invsolve.make)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image_size": 0}, "image_size must be N, .rows, columns. or"),
    ({"image_size": [4, 4], "beam": "pencil"}, "beam must be one of parallel, fan, cone, got 'pencil'"),
    ({"image_size": 8, "angles": 0}, "angles must be a count from 1 to"),
    ({"image_size": 8, "angles": [0.0, math.nan]}, "finite degrees"),
    ({"image_size": 8, "angles": 3, "pixel_size": -1.0}, "pixel_size must be > 0, got -1"),
    ({"image_size": 8, "angles": 3, "detectors": -2}, "detectors and detector_rows must be >= 1"),
    ({"image_size": 8, "angles": 3, "beam": "fan"}, "a fan beam needs source_distance"),
    (FAN | {"source_distance": 5.0}, "inside the circle around the image, of radius 6.40"),
    (FAN | {"image_size": [4, 8, 10]}, "a fan beam sees one slice"),
    (CONE | {"image_size": 8}, "a cone beam sees volumes"),
    (FAN | {"tilt": 3.0}, "tilt is for volumes"),
    (FAN | {"detector_distance": -40.0}, "not behind the source"),
    (FAN | {"image_offset": (1.0, 0.0, 0.0)}, "image_offset must have 2 numbers, got 3"),
    (FAN | {"curved": True, "detector_spacing": 9.0}, "a quarter turn or more"),
    ({"image_size": 8, "angles": 3, "curved": True}, "a parallel beam has no source_distance"),
    (
        {"image_size": 8, "beam": "fan", "detectors": 4, "vectors": np.ones((3, 12))},
        r"must be \(views, 6\), got \(3, 12\)",
    ),
    ({"image_size": 8, "beam": "fan", "detectors": 4, "vectors": np.ones((3, 6))}, "no source to detector"),
    (
        {"image_size": 8, "beam": "fan", "detectors": 4, "vectors": [[0, -1, 0, 9, 1, 0]]},
        "source of view 0 is inside the image",
    ),
    ({"image_size": 8, "beam": "fan", "vectors": [[0, -20, 0, 9, 1, 0]]}, "give detectors"),
    (
        {"image_size": 8, "beam": "fan", "detectors": 4, "vectors": [[0, -20, 0, 9, 1, 0]], "source_distance": 20.0},
        "leave out source_distance",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_no_scan_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(invsolve.UserError, match=message) as caught:
        Geometry(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[3]", "must be a JSON object"),
        ('{"beam": "fan"}', "image_size is missing"),
        ('{"image_size": 8, "detector": 4}', "unknown entry 'detector'.*'detectors'"),
        ("missing.json", "missing.json: cannot be read"),
        ('{"image_size": 8, "pixel_size": "a mm"}', "geometry: holds something that is no number"),
        ('{"image_size": 8, "pixel_size": -1}', "^operator 'ct': geometry: pixel_size must be > 0"),
    ],
)
def test_what_is_no_text_of_one_is_refused(text: str, message: str) -> None:
    with pytest.raises(invsolve.UserError, match=message):
        invsolve.operator("ct", geometry=text)


def test_other_conventions_refuse_what_they_cannot_say() -> None:
    with pytest.raises(invsolve.UserError, match="no curved detectors"):
        Geometry(**FAN, curved=True).to_astra()
    with pytest.raises(invsolve.UserError, match="to_astra"):
        Geometry(**CONE, feed=3.0).to_cil()
    with pytest.raises(invsolve.UserError, match="type 'sparse_matrix' is not known"):
        Geometry.from_astra({"type": "sparse_matrix"}, ASTRA_2D)
    with pytest.raises(invsolve.UserError, match="entry 'DetectorCount' is missing"):
        Geometry.from_astra({"type": "parallel"}, ASTRA_2D)
    with pytest.raises(invsolve.UserError, match=r"pixels must be square, got 2 x 1\.5"):
        Geometry.from_astra(
            {"type": "parallel"},
            ASTRA_2D | {"option": {"WindowMaxX": 9.0, "WindowMinX": -9.0, "WindowMinY": -5.25, "WindowMaxY": 5.25}},
        )


def test_geometry_stands_alone() -> None:
    with pytest.raises(invsolve.UserError, match="leave out image_size, angles"):
        invsolve.operator("ct", geometry=Geometry(**FAN), image_size=8, angles=4)
    with pytest.raises(invsolve.UserError, match="needs image_size="):
        invsolve.operator("ct", angles=4)
