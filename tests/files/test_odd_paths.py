"""Paths that are odd: pipes and devices, names as long as a file system allows, names that are no text, wrong kinds."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from invsolve.datasets.hdf5 import write_images
from tests.support.results import write_result

Cli = Callable[..., tuple[int, str, str]]

RNG = np.random.default_rng(0)


def images(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["x"] = RNG.random((2, 1, 16, 16)).astype("f4")
    return path


@pytest.mark.parametrize("name", ["a.h5", "a.npy", "a.nii", "a.tif", "a.png", "a.dcm", "a.cfl", "a.safetensors"])
@pytest.mark.parametrize("verb", ["inspect", "simulate", "reconstruct", "evaluate", "report", "train"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, verb: str, tmp_path: Path, cli: Cli) -> None:
    os.mkfifo(tmp_path / name)
    out = tmp_path / ("out.html" if verb == "report" else "out.safetensors" if verb == "train" else "out.h5")
    more = {"simulate": ("--operator", "blur"), "reconstruct": ("--strategy", "linear")}.get(verb, ())
    written = () if verb in ("inspect", "evaluate") else ("-o", out)
    code, _, err = cli(verb, tmp_path / name, *written, *more)
    assert code == 2
    assert f"{tmp_path / name}: is a pipe, device or socket, expected a file" in err


@pytest.mark.parametrize("layout", ["array", "nifti", "dicom", "bart", "dxchange", "fastmri"])
def test_a_named_layout_waits_for_no_pipe_either(layout: str, tmp_path: Path, cli: Cli) -> None:
    os.mkfifo(tmp_path / "a.cfl")
    os.mkfifo(tmp_path / "a.hdr")
    code, _, err = cli("inspect", tmp_path / "a.cfl", "--layout", layout)
    assert code == 2
    assert "is a pipe, device or socket" in err


def test_pipes_in_a_folder_of_images_are_passed_over(tmp_path: Path, cli: Cli) -> None:
    from PIL import Image

    for k in range(3):
        Image.fromarray(np.full((16, 16), 50 * k, np.uint8)).save(tmp_path / f"{k}.png")
    os.mkfifo(tmp_path / "3.png")
    code, out, err = cli("inspect", tmp_path)
    assert code == 0, err
    assert "3 x 1 x 16 x 16" in out


def test_names_as_long_as_a_file_system_allows(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long = images(Path("a" * 245 + ".h5"))
    code, out, err = cli("inspect", long)
    assert code == 0, err
    command = next(line.strip() for line in out.splitlines() if line.startswith("  invsolve simulate"))
    code, _, err = cli(*command.split()[1:])
    assert code == 0, err
    scan = next(Path().glob("*_scan.h5"))
    for words in (
        ("simulate", long, "-o", "b" * 245 + ".h5", "--operator", "blur", "--set", "sigma=1.0"),
        ("reconstruct", scan, "-o", "b" * 245 + ".h5", "--strategy", "linear"),
        ("report", scan, "-o", "b" * 243 + ".html"),
    ):
        code, _, err = cli(*words)
        assert code == 2
        assert "the output's name has 248 bytes, expected at most 223" in err
    code, _, err = cli("reconstruct", scan, "-o", "c" * 220 + ".h5", "--strategy", "linear")
    assert code == 0, err
    for verb in ("inspect", "simulate", "evaluate", "reconstruct"):
        more = {"simulate": ("-o", "s.h5", "--operator", "blur"), "reconstruct": ("-o", "s.h5")}.get(verb, ())
        code, _, err = cli(verb, "n" * 300 + ".h5", *more)
        assert code == 2
        assert "File name too long" in err
        assert err.count("\n") == 1


def test_names_that_are_no_text(tmp_path: Path, cli: Cli) -> None:
    """The words are what Python makes of the bytes that a shell hands over."""
    images(tmp_path / os.fsdecode(b"sc\xe9an.h5"))
    steps: list[tuple[str | bytes, ...]] = [
        ("inspect", b"sc\xe9an.h5"),
        ("simulate", b"sc\xe9an.h5", "-o", b"m\xe9.h5", "--operator", "blur", "--set", "sigma=1.0"),
        ("reconstruct", b"m\xe9.h5", "-o", b"r\xe9.h5", "--strategy", "linear"),
        ("report", b"r\xe9.h5", "-o", b"r\xe9.html"),
    ]
    for step in steps:
        code, _, err = cli(*(tmp_path / os.fsdecode(w) if isinstance(w, bytes) else w for w in step))
        assert code == 0, err
    page = (tmp_path / os.fsdecode(b"r\xe9.html")).read_text(encoding="utf-8")
    assert "\\udce9" in page


def test_a_name_that_is_no_text_is_printed_with_its_bytes_escaped(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = images(tmp_path / os.fsdecode(b"sc\xe9an.h5"))
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "invsolve", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"sc\\xe9an.h5: images" in done.stdout


def test_reconstructing_images_or_a_result_says_what_to_do(tmp_path: Path, cli: Cli) -> None:
    path = images(tmp_path / "x.h5")
    code, _, err = cli("reconstruct", path, "-o", tmp_path / "r.h5", "--strategy", "linear")
    assert code == 2
    assert f"{path}: holds images (dataset x), not a measurement; measure them first: 'invsolve simulate {path}" in err
    scan, result = tmp_path / "scan.h5", tmp_path / "result.h5"
    assert cli("simulate", path, "-o", scan, "--operator", "blur", "--set", "sigma=1.0")[0] == 0
    assert cli("reconstruct", scan, "-o", result, "--strategy", "linear")[0] == 0
    code, _, err = cli("reconstruct", result, "-o", tmp_path / "r.h5", "--strategy", "linear")
    assert code == 2
    assert f"{result}: is a result, not a measurement; look at it with 'invsolve report {result}" in err
    assert err.count("\n") == 1


def matlab(path: Path, **variables: np.ndarray) -> Path:
    """As MATLAB -v7.3 writes: 512 bytes in front, axes in reverse, complex numbers as compounds, book-keeping groups."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file["#refs#/a"] = np.zeros(2)
        for name, values in variables.items():
            if np.iscomplexobj(values):
                kind = np.dtype([("real", "f8"), ("imag", "f8")])
                stored = np.zeros(values.T.shape, kind)
                stored["real"], stored["imag"] = values.T.real, values.T.imag
            else:
                stored = values.T
            file[name] = stored
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    raw = bytearray(path.read_bytes())
    raw[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(raw)
    return path


def test_matlab_files_are_listed_and_read_in_their_own_order(tmp_path: Path, cli: Cli) -> None:
    import json
    import shlex

    from invsolve.datasets.layouts.array import Array

    images_, coils = RNG.random((12, 10, 5)), RNG.random((12, 10, 4)) + 1j
    path = matlab(tmp_path / "a.mat", volume=images_, kspace=coils)
    code, out, err = cli("inspect", path)
    assert code == 0, err
    assert "volume: 12 x 10 x 5 in MATLAB, in reverse in the file" in out
    assert "#refs#" not in "".join(line for line in out.splitlines() if "invsolve inspect" in line)
    code, out, _ = cli("inspect", path, "--json")
    commands = {c["does"]: c["command"] for c in json.loads(out)["commands"]}
    (of_volume,) = [c for c in commands.values() if "dataset=volume" in c]
    assert "axes=item,column,row" in of_volume
    code, out, err = cli(*shlex.split(of_volume)[1:])
    assert code == 0, err
    assert "MATLAB stores axes in reverse: its 12 x 10 x 5 is 5 x 10 x 12 in the file" in out
    volume = Array(dataset="volume", axes="item,column,row").images(path)
    assert np.allclose(volume.x[0:5].numpy()[:, 0], images_.transpose(2, 0, 1), atol=1e-6)
    assert any("dataset=kspace" in c and "axes=coil,column,row" in c for c in commands.values())
    complex_ = Array(dataset="kspace", axes="item,column,row").images(path)
    assert np.allclose(complex_.x[1:2].numpy()[0, 0], coils[:, :, 1], atol=1e-6)


def test_a_matlab_variable_called_x_is_not_taken_for_our_images(tmp_path: Path, cli: Cli) -> None:
    path = matlab(tmp_path / "a.mat", x=RNG.random((16, 16, 1, 3)))
    code, _, err = cli("simulate", path, "-o", tmp_path / "s.h5", "--operator", "blur", "--set", "sigma=1.0")
    assert code == 2
    assert "x was written by MATLAB, whose axes are in reverse (3, 1, 16, 16)" in err
    with h5py.File(path, "a") as file:
        file["x"].attrs["MATLAB_empty"] = 1
    code, _, err = cli("inspect", path, "--layout", "array", "--read", "dataset=x")
    assert code == 0
    read = ("--layout", "array", "--read", "dataset=x")
    code, _, err = cli("simulate", path, "-o", tmp_path / "s.h5", *read, "--operator", "blur")
    assert code == 2
    assert "dataset '/x' is empty in MATLAB" in err


def test_a_link_outside_that_nobody_asks_for_is_passed_over(tmp_path: Path, cli: Cli) -> None:
    # Master files of beamlines have many: what a command does not need, it need not be able to open.
    (tmp_path / "private").mkdir()
    secret = tmp_path / "private" / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = [1.0]
    (folder := tmp_path / "scan").mkdir()
    write_images(folder / "images.h5", torch.rand(2, 1, 16, 16))
    write_result(folder / "result.h5", 2, (1, 16, 16), 2)
    for name in ("images.h5", "result.h5"):
        with h5py.File(folder / name, "a") as file:
            file["not asked for"] = h5py.ExternalLink(str(secret), "/x")
    output = folder / "out.h5"
    commands = [
        ("inspect", folder / "images.h5"),
        ("inspect", folder / "result.h5"),
        ("evaluate", folder / "result.h5"),
        ("simulate", folder / "images.h5", "-o", output, "--operator", "blur", "--set", "sigma=1"),
        ("join", folder / "result.h5", "-o", folder / "joined.h5"),
    ]
    for command in commands:
        code, _, err = cli(*command)
        assert code == 0, f"{command[0]}: {err}"
    with h5py.File(folder / "joined.h5") as file:
        assert "not asked for" not in file
