"""DICOM beyond the plain series: what the numbers mean, which slices make a stack, and what is refused; truth by pydicom."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invsolve.datasets.layouts.dicom import DICOM
from invsolve.errors import UserError

pydicom = pytest.importorskip("pydicom")
from tests.support.dicom_files import AXIAL, by_pydicom, dicom_file, nested, stack  # noqa: E402 (needs pydicom)

RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 3000, (3, 6, 8)).astype(np.uint16)
TABLE = np.array([500, 100, 60000, 3], np.uint16)


def values(path: Path, **options: Any) -> np.ndarray:
    series = DICOM(**options).images(path)
    return series.x[0 : len(series.x)].numpy()[:, 0]


def folder(tmp_path: Path, pixels: np.ndarray, **elements: Any) -> Path:
    (made := tmp_path / "series").mkdir()
    return dicom_file(made / "a.dcm", pixels, **elements).parent


def test_enhanced_files_are_rescaled_and_sorted_by_their_functional_groups(tmp_path: Path) -> None:
    shared = nested(
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7]}, PlaneOrientationSequence={"ImageOrientationPatient": AXIAL}
    )
    frames = [
        nested(
            PixelValueTransformationSequence={"RescaleSlope": k + 1, "RescaleIntercept": -k, "RescaleType": "HU"},
            PlanePositionSequence={"ImagePositionPatient": [0, 0, -5.0 * k]},
        )
        for k in range(3)
    ]
    path = folder(tmp_path, RAW, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames)
    series = DICOM().images(path)
    stored = pydicom.dcmread(path / "a.dcm").pixel_array.astype(float)
    # From the feet: the last frame lies lowest.
    assert np.array_equal(series.x[0:3].numpy()[:, 0], np.stack([stored[k] * (k + 1) - k for k in (2, 1, 0)]))
    assert (series.unit, series.spacing) == ("HU", (0.5, 0.7))
    assert "slices 5 mm apart" in series.notes
    del frames[2]
    broken = dicom_file(tmp_path / "b.dcm", RAW, PerFrameFunctionalGroupsSequence=frames)
    with pytest.raises(UserError, match="describes 2 of 3 frames"):
        DICOM().images(broken)


def test_a_modality_table_is_applied(tmp_path: Path) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4, 0, 16], "OD", TABLE.tobytes()
    pixels = RNG.integers(0, 6, (6, 8)).astype(np.uint8)  # 4 and 5 lie beyond the table
    path = folder(tmp_path, pixels, Modality="DX", ModalityLUTSequence=[item])
    assert np.array_equal(values(path)[0], by_pydicom(path / "a.dcm"))
    assert np.array_equal(values(path)[0], TABLE[np.minimum(pixels, 3)])
    assert DICOM().images(path).unit == "OD"


@pytest.mark.parametrize("grey", [True, False])
def test_grey_palettes_are_applied_and_coloured_ones_refused(grey: bool, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4, (6, 8)).astype(np.uint8)
    colours = {"Red": TABLE, "Green": TABLE, "Blue": TABLE if grey else TABLE[::-1]}
    tables: dict[str, Any] = {f"{c}PaletteColorLookupTableData": t.tobytes() for c, t in colours.items()}
    tables |= {f"{c}PaletteColorLookupTableDescriptor": [4, 0, 16] for c in colours}
    path = folder(tmp_path, pixels, Modality="US", PhotometricInterpretation="PALETTE COLOR", **tables)
    if grey:
        assert np.array_equal(
            values(path)[0], pydicom.pixels.apply_color_lut(pixels, pydicom.dcmread(path / "a.dcm"))[..., 0]
        )
    else:
        with pytest.raises(UserError, match=r"a\.dcm: is a colour image \(by its palette\)"):
            values(path)


def test_monochrome1_is_inverted_unless_its_values_have_a_unit(tmp_path: Path) -> None:
    stored: dict[str, Any] = {
        "Modality": "DX",
        "PhotometricInterpretation": "MONOCHROME1",
        "BitsStored": 12,
        "HighBit": 11,
    }
    plain = folder(tmp_path, RAW[0], **stored)
    assert np.array_equal(values(plain)[0], 4095.0 - RAW[0])
    assert any("MONOCHROME1" in n and "inverted" in n for n in DICOM().images(plain).notes)
    signed = dicom_file(tmp_path / "s.dcm", RAW[0].astype(np.int16) - 1000, **stored)
    assert np.array_equal(values(signed)[0], -1.0 - (RAW[0].astype(float) - 1000))  # from -2048 to 2047
    rescaled: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
    ct = dicom_file(tmp_path / "b.dcm", RAW[0], **(stored | rescaled))
    assert np.array_equal(values(ct)[0], by_pydicom(ct))
    assert any("not inverted" in n for n in DICOM().images(ct).notes)


@pytest.mark.parametrize("tag", [-2000, None])
def test_padding_of_ct_is_air(tag: int | None, tmp_path: Path) -> None:
    """Untagged, too: no tissue has -3024 HU."""
    pixels = RAW[0].astype(np.int16)
    pixels[:2] = -2000
    extra = {} if tag is None else {"PixelPaddingValue": tag}
    path = folder(tmp_path, pixels, RescaleSlope=1, RescaleIntercept=-1024, **extra)
    truth = by_pydicom(path / "a.dcm")
    truth[:2] = -1024
    assert np.array_equal(values(path)[0], truth)
    assert values(path, padding=-1000.0)[0, 0, 0] == -1000
    assert any("padding" in n and "-1024" in n for n in DICOM().images(path).notes)


def test_padding_ranges_and_other_units(tmp_path: Path) -> None:
    pixels = np.array([[10, 63536, 63540], [63530, 20, 30]], np.uint16)
    limits = {"PixelPaddingValue": 63536, "PixelPaddingRangeLimit": 63540}
    path = folder(tmp_path, pixels, Modality="MR", **limits)
    assert values(path)[0].tolist() == [[10, 0, 0], [63530, 20, 30]]
    assert any("padding (63536 as stored) is set to 0" in n for n in DICOM().images(path).notes)


@pytest.mark.parametrize(
    ("elements", "unit"),
    [
        ({}, ""),
        ({"RescaleSlope": 2, "RescaleIntercept": -1024}, "HU"),
        ({"RescaleSlope": 2, "RescaleIntercept": -1024, "RescaleType": "US"}, ""),
        ({"Modality": "PT", "Units": "BQML", "RescaleSlope": 0.37, "RescaleIntercept": 0}, "BQML"),
    ],
)
def test_only_what_is_rescaled_has_a_unit(elements: Any, unit: str, tmp_path: Path) -> None:
    path = folder(tmp_path, RAW[0], **elements)
    series = DICOM().images(path)
    assert series.unit == unit
    assert np.allclose(series.x[0:1].numpy()[0, 0], by_pydicom(path / "a.dcm"), rtol=1e-6)
    assert any("no rescaling to HU" in n for n in series.notes) == (elements == {})


def test_a_dose_grid_has_its_scaling_and_heights(tmp_path: Path) -> None:
    grid = {"Modality": "RTDOSE", "DoseGridScaling": 0.002, "DoseUnits": "GY", "GridFrameOffsetVector": [0, -2, -4]}
    place = {"ImagePositionPatient": [0, 0, 9], "ImageOrientationPatient": AXIAL, "PixelSpacing": [1, 1]}
    dose = DICOM().images(folder(tmp_path, RAW, **grid, **place))
    assert np.allclose(dose.x[0:3].numpy()[:, 0], RAW[::-1] * 0.002)
    assert dose.unit == "Gy"


@pytest.mark.parametrize(
    ("across", "turned"),
    [
        ([-1, 0, 0, 0, -1, 0], lambda v: v[::-1, ::-1]),
        ([0, 1, 0, 1, 0, 0], lambda v: v.T),
        ([1, 0, 0, 0, -1, 0], lambda v: v[::-1]),
        ([1, 0, 0, 0, 0, -1], lambda v: v),
        ([0, -1, 0, 0, 0, 1], lambda v: v[::-1, ::-1]),
    ],
)
def test_slices_look_as_in_radiology(across: Any, turned: Any, tmp_path: Path) -> None:
    """Rows to the back or down, columns to the patient's left or back: as nibabel's reorientation of the same volume."""
    nibabel = pytest.importorskip("nibabel")
    path = folder(tmp_path, RAW[0], ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=across, PixelSpacing=[2, 3])
    assert np.array_equal(values(path)[0], turned(RAW[0]))
    assert DICOM().images(path).spacing == ((3, 2) if across[0] == 0 and across[1] == 1 else (2, 3))
    # x and y of NIfTI point to the right and to the front, those of DICOM the other way.
    columns, rows = np.array(across[:3]) * [-1, -1, 1], np.array(across[3:]) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([columns * 3, rows * 2, np.cross(columns, rows)], 1)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(RAW[0].T[:, :, None], affine))
    plane = np.asarray(image.dataobj).squeeze()
    assert np.array_equal(values(path)[0], plane[::-1, ::-1].T)


def test_a_missing_slice_is_said_and_the_parts_are_volumes(tmp_path: Path) -> None:
    series = DICOM().images(stack(tmp_path / "a", list(range(5)), [0, 1, 2, 4, 5]))
    assert any("1 slices are missing" in n and "between 2 and 4 mm" in n for n in series.notes)
    assert series.volumes == [0, 0, 0, 1, 1]
    assert DICOM(slices=[2, 4]).images(tmp_path / "a").volumes == [0, 1]
    whole = DICOM().images(stack(tmp_path / "b", list(range(4)), [0, 1, 2, 3]))
    assert whole.volumes is None
    assert not any("missing" in n for n in whole.notes)
    uneven = DICOM().images(stack(tmp_path / "c", list(range(4)), [0, 1, 2.3, 3.5]))
    assert any("not equally spaced: 1 to 1.3 mm" in n for n in uneven.notes)


def test_a_tilted_gantry_is_said(tmp_path: Path) -> None:
    path = stack(tmp_path / "a", [1, 2, 3], [0, 0, 0], each=lambda k: {"ImagePositionPatient": [0, 2.0 * k, 4.0 * k]})
    (note,) = [n for n in DICOM().images(path).notes if "tilted" in n]
    assert "up to 4 mm (gantry tilted by 27 degrees?)" in note


@pytest.mark.parametrize("name", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime"])
def test_phases_of_one_series_are_told_apart(name: str, tmp_path: Path) -> None:
    numbers, heights = [10, 20, 11, 21, 12, 22], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    path = stack(tmp_path / "a", numbers, heights, each=lambda k: {name: k % 2 + 1})
    with pytest.raises(
        UserError, match=rf"2 phases at the same positions \({name}\); choose the stack: stack=0 \(3 sl"
    ):
        DICOM().images(path)
    assert values(path, stack=1)[:, 0, 0].tolist() == [v - 1024 for v in (20, 21, 22)]
    with pytest.raises(UserError, match="stack=2 must be 0 to 1"):
        DICOM(stack=2).images(path)


def test_phases_that_nothing_tells_apart_are_refused_and_copies_dropped(tmp_path: Path) -> None:
    path = stack(tmp_path / "a", [1, 2, 3, 4], [0, 1, 0, 1], each=lambda k: {"AcquisitionTime": f"12000{k}"})
    with pytest.raises(UserError, match="2 of 2 positions hold more than one slice, and nothing in the headers"):
        DICOM().images(path)
    once = stack(tmp_path / "b", [1, 2], [0, 1])
    shutil.copy(once / "000", once / "copy")
    assert values(once)[:, 0, 0].tolist() == [1 - 1024, 2 - 1024]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "2 orientations (1 0 0 0 0 -1), (1 0 0 0 1 0)"),
        ({"PixelSpacing": [0.5, 0.5]}, "2 pixel spacings (0.5 0.5), (1 1)"),
        ({"RescaleType": "Z_EFF"}, "2 kinds of values HU, Z_EFF"),
        ({"ImagePositionPatient": None}, "positions in some files only"),
    ],
)
def test_slices_that_do_not_fit_are_another_stack(odd: Any, reason: str, tmp_path: Path) -> None:
    path = stack(tmp_path / "a", [1, 2, 3], [0, 1, 2], each=lambda k: odd if k == 2 else {})
    with pytest.raises(UserError) as caught:
        DICOM().images(path)
    assert f"its slices have {reason}; choose the stack: stack=0 (2 slices of 4 x 5, axial" in str(caught.value)
    assert values(path, stack=0)[:, 0, 0].tolist() == [1 - 1024, 2 - 1024]


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_a_preamble(explicit: bool, meta: bool, tmp_path: Path) -> None:
    whole = dicom_file(tmp_path / "whole.dcm", RAW[0], RescaleSlope=1, RescaleIntercept=-1024)
    data = pydicom.dcmread(whole)
    syntax = pydicom.uid.ExplicitVRLittleEndian if explicit else pydicom.uid.ImplicitVRLittleEndian
    data.file_meta.TransferSyntaxUID = syntax
    (bare := tmp_path / "bare").mkdir()
    if meta:
        data.save_as(bare / "a", enforce_file_format=True)
        (bare / "a").write_bytes((bare / "a").read_bytes()[132:])
    else:
        del data.file_meta
        data.preamble = None
        data.save_as(bare / "a", implicit_vr=not explicit, little_endian=True, enforce_file_format=False)
    assert (bare / "a").read_bytes()[:4] in (b"\x02\0\0\0", b"\x08\0\x16\0")
    assert DICOM.opens(bare)
    assert np.array_equal(values(bare)[0], by_pydicom(whole))


def test_other_files_do_not_begin_as_dicom_does(tmp_path: Path) -> None:
    for content in (b"\x02\0\0\0\x04\0\0\0" + bytes(200), b"\x08\0\0\0" * 40, b"", bytes(200), b"# Dimensions\n4 4\n"):
        (tmp_path / "a").write_bytes(content)
        assert not DICOM.opens(tmp_path / "a")


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_a_folder_that_begins_with_other_files(suffix: str, tmp_path: Path) -> None:
    path = stack(tmp_path / "a", [1, 2], [0, 1])
    for k in range(30):
        (path / f"0{k:03d}.txt").write_text("a note")
    for k in range(2):
        (path / f"{k:03d}").rename(path / f"z{k}{suffix}")
    assert DICOM.opens(path)
    assert len(values(path)) == 2


@pytest.mark.parametrize("packed", [True, False])
def test_a_multi_frame_file_is_read_once_and_each_frame_decoded_once(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = RNG.integers(0, 60000, (40, 16, 16)).astype(np.uint16)
    path = dicom_file(tmp_path / "cine.dcm", frames, Modality="XA")
    if packed:
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(path)
    cine = DICOM().images(path)
    counts = {"files": 0, "frames": 0}
    read, decode = pydicom.dcmread, pydicom.pixels.pixel_array

    def counted_read(*given: Any, **options: Any) -> Any:
        counts["files"] += 1
        return read(*given, **options)

    def counted_decode(*given: Any, **options: Any) -> Any:
        assert options["index"] is not None
        counts["frames"] += 1
        return decode(*given, **options)

    monkeypatch.setattr(pydicom, "dcmread", counted_read)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", counted_decode)
    assert np.array_equal(np.concatenate([cine.x[k : k + 1].numpy()[:, 0] for k in range(40)]), frames)
    assert counts == {"files": 1, "frames": 40}


@pytest.mark.parametrize("packed", [True, False])
def test_more_frames_than_the_file_can_hold_are_refused_before_any_is_decoded(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicom_file(tmp_path / "a.dcm", RAW)
    data = pydicom.dcmread(path)
    if packed:
        data.compress(pydicom.uid.RLELossless)
    data.NumberOfFrames = 10**9
    data.save_as(path)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"a\.dcm: claims 1000000000 frames of 6 x 8, which its \d+ bytes cannot hold"):
        DICOM().images(path)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    path = folder(tmp_path, RAW[0], Modality="MR", PixelSpacing=[2, 1])
    series = DICOM(square=True).images(path)
    assert series.spacing == (1, 1)
    rows = (np.arange(12) + 0.5) / 2 - 0.5
    where = np.stack(np.meshgrid(rows, np.arange(8), indexing="ij"))
    truth = ndimage.map_coordinates(RAW[0].astype(float), where, order=1, mode="nearest")
    assert np.allclose(series.x[0:1].numpy()[0, 0], truth, atol=1e-3)
    assert any("made square" in n for n in series.notes)


def test_a_ratio_of_sides_without_a_size_is_said_and_made_square(tmp_path: Path) -> None:
    path = folder(tmp_path, RAW[0], Modality="US", PixelAspectRatio=[2, 1])
    series = DICOM().images(path)
    assert (series.spacing, series.spacing_unit) == ((2, 1), "")
    assert any("not square, 2 high to 1 wide" in n for n in series.notes)
    assert DICOM(square=True).images(path).x[0:1].shape == (1, 1, 2 * RAW.shape[1], RAW.shape[2])
    (tmp_path / "alike").mkdir()
    alike = folder(tmp_path / "alike", RAW[0], Modality="US", PixelAspectRatio=[1, 1])
    assert DICOM().images(alike).spacing is None


@pytest.mark.parametrize("half", ["RescaleSlope", "RescaleIntercept"])
def test_half_a_rescaling_is_none_as_for_pydicom(half: str, tmp_path: Path) -> None:
    from pydicom.pixels import apply_rescale

    path = folder(tmp_path, RAW[0], **{half: 2})
    (file,) = path.iterdir()
    series = DICOM().images(path)
    assert series.unit == ""
    assert any("slope or intercept alone" in n for n in series.notes)
    np.testing.assert_array_equal(series.x[0:1].numpy()[0, 0], apply_rescale(RAW[0], pydicom.dcmread(file)))


def test_a_slice_that_is_damaged_is_refused_and_what_is_no_dicom_is_said(tmp_path: Path) -> None:
    path = stack(tmp_path / "series", [10, 20, 30, 40], [0.0, 1.0, 2.0, 3.0])
    for file in list(path.iterdir()):
        file.rename(file.with_suffix(".dcm"))
    files = sorted(path.iterdir())
    whole = values(path)
    for name in ("DICOMDIR.txt", "notes", "thumbs"):
        (path / name).write_bytes(b"nothing of the kind")
    series = DICOM().images(path)
    assert np.array_equal(series.x[0 : len(series.x)].numpy()[:, 0], whole)
    assert any("left out: DICOMDIR.txt, notes, thumbs, which are no DICOM" in note for note in series.notes)
    good = files[1].read_bytes()
    # Overwritten from its start: pydicom alone would say that it is no DICOM, and the stack would have a hole.
    files[1].write_bytes(bytes(200) + good[200:])
    with pytest.raises(UserError, match="is named as DICOM, but does not begin as such a file does") as caught:
        DICOM().images(path)
    assert "\n" not in str(caught.value)
    # Without that name it is one of the other files, which are said, and so is the hole that it leaves.
    files[1].rename(path / "slice")
    notes = DICOM().images(path).notes
    assert any("left out: " in note and "slice" in note for note in notes)
    assert any("slices are not equally spaced: 1 to 2 mm apart" in note for note in notes)
    (path / "slice").unlink()
    files[1].write_bytes(good[:-10])
    with pytest.raises(UserError) as caught:
        values(path)
    assert "\n" not in str(caught.value)
