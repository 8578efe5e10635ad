"""The command line, as a person uses it: files in, files out, exit codes, and one line for every mistake."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.stops import stop_at
from tests.support.types import Cli, CliProcess
from tests.support.volumes import PRIOR

CT = ("--operator", "ct", "--set", "angles=12", "--noise", "gaussian:0.05")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(PRIOR)
    return path


@pytest.fixture
def scan(images: Path, tmp_path: Path, cli: Cli) -> Path:
    path = tmp_path / "scan.h5"
    code, _, err = cli("simulate", images, "-o", path, *CT)
    assert code == 0, err
    return path


def test_a_point_estimate_repeated_has_no_coverage(scan: Path, tmp_path: Path, cli: Cli) -> None:
    recon = tmp_path / "recon.h5"
    assert cli("reconstruct", scan, "-o", recon, "--strategy", "tv", "--samples", 2)[0] == 0
    code, out, _ = cli("evaluate", recon, "--json")
    assert code == 0
    assert set(json.loads(out)["mean"]) == {"psnr", "ssim", "nrmse"}
    assert cli("report", recon, "-o", tmp_path / "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text()
    assert "does not draw from the posterior" in text
    assert "knows what the prior" not in text
    assert "coverage_90" not in re.findall(r'"names":\s*\[[^]]*\]', text)[0]


def test_from_truth_to_report(images: Path, scan: Path, tmp_path: Path, plugin: Path, cli: Cli) -> None:
    recon = tmp_path / "recon.h5"
    options = ("--prior", "small", "--plugin", plugin, "--set", "steps=60", "--samples", 3, "--seed", 1)
    code, out, err = cli("reconstruct", scan, "-o", recon, *options, "--json")
    assert code == 0, err
    assert json.loads(out)["items"] == 5
    with h5py.File(recon) as file:
        assert file["mean"].shape == (5, 1, 16, 16)
        assert file["samples"].shape == (5, 3, 1, 16, 16)
        assert file["done"][:].all()
        assert np.isfinite(file["std"][:]).all()
        assert file.attrs["seed"] == 1
        config = json.loads(file.attrs["config"])
        assert file.attrs["invsolve_version"]
        assert config["strategy"]["parameters"]["steps"] == 60
        assert config["command"].startswith("invsolve")
    code, out, _ = cli("evaluate", recon, "--truth", images, "--json")
    assert code == 0
    scores = json.loads(out)
    assert scores["mean"]["psnr"] > 15
    assert 0 <= scores["mean"]["coverage_90"] <= 1
    code, out, _ = cli("evaluate", recon)
    assert "PSNR" in out
    for name in ("sheet.png", "page.html"):
        code, _, err = cli("report", recon, "-o", tmp_path / name)
        assert code == 0, err
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert 'id="frame-4"' in (tmp_path / "page.html").read_text()


def test_the_same_command_gives_the_same_file(scan: Path, tmp_path: Path, cli: Cli) -> None:
    results = []
    for name in ("a.h5", "b.h5"):
        code, _, _ = cli("reconstruct", scan, "-o", tmp_path / name, "--strategy", "tv", "--set", "steps=30")
        assert code == 0
        with h5py.File(tmp_path / name) as file:
            results.append(file["mean"][:])
    np.testing.assert_array_equal(*results)


def test_an_existing_output_is_kept(scan: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "recon.h5"
    assert cli("reconstruct", scan, "-o", out, "--strategy", "linear")[0] == 0
    before = out.read_bytes()
    for other in (("--strategy", "tv", "--set", "steps=3"), ("--strategy", "linear", "--slices", "0:1")):
        code, _, err = cli("reconstruct", scan, "-o", out, *other)
        assert code == 2
        assert "--overwrite" in err
        assert out.read_bytes() == before
    assert cli("reconstruct", scan, "-o", out, "--strategy", "linear", "--overwrite")[0] == 0


def test_the_unit_of_the_images_reaches_the_scan(images: Path, tmp_path: Path, cli: Cli) -> None:
    with h5py.File(images, "a") as file:
        file.attrs["unit"] = "HU"
    scan = tmp_path / "scan.h5"
    code, _, err = cli(
        "simulate", images, "-o", scan, "--operator", "blur", "--set", "sigma=1", "--noise", "gaussian:1"
    )
    assert code == 0, err
    with h5py.File(scan) as file:
        assert file.attrs["image_unit"] == "HU"


def arguments(scan: Path, out: Path, plugin: Path, batch: int = 2) -> list[object]:
    options = [
        "--prior",
        "small",
        "--plugin",
        plugin,
        "--strategy",
        "dps-fitted",
        "--set",
        "steps=20",
        "--samples",
        2,
        "--batch-size",
        batch,
    ]
    return ["reconstruct", scan, "-o", out, *options]


def test_kill_and_resume_gives_the_unkilled_samples(
    scan: Path, tmp_path: Path, plugin: Path, cli: Cli, cli_process: CliProcess
) -> None:
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    code, _, err = cli(*arguments(scan, whole, plugin))
    assert code == 0, err
    process = cli_process(
        *arguments(scan, broken, plugin), environment=stop_at("item written", signal.SIGKILL, count=2)
    )
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert not broken.exists()
    # Resumed with another batch size: the samples must not notice.
    code, _, err = cli(*arguments(scan, broken, plugin, batch=7))
    assert code == 0, err
    assert "continuing" in err
    assert not Path(f"{broken}.partial.h5").exists()
    with h5py.File(whole) as a, h5py.File(broken) as b:
        np.testing.assert_allclose(b["samples"][:], a["samples"][:], atol=1e-4)
        assert b["done"][:].all()


def test_sigterm_keeps_what_is_done(scan: Path, tmp_path: Path, plugin: Path, cli_process: CliProcess) -> None:
    out = tmp_path / "recon.h5"
    process = cli_process(*arguments(scan, out, plugin), environment=stop_at("item written", signal.SIGTERM))
    partial = Path(f"{out}.partial.h5")
    _, err = process.communicate()
    assert process.returncode == 130
    assert "run the same command" in err
    assert "Traceback" not in err
    with h5py.File(partial) as file:
        assert file["done"][:].any()


def test_another_configuration_does_not_resume(
    scan: Path, tmp_path: Path, plugin: Path, cli_process: CliProcess, cli: Cli
) -> None:
    out = tmp_path / "recon.h5"
    process = cli_process(*arguments(scan, out, plugin), environment=stop_at("item written", signal.SIGKILL))
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    code, _, err = cli(
        "reconstruct", scan, "-o", out, "--prior", "small", "--plugin", plugin, "--set", "steps=30", "--samples", 2
    )
    assert code == 2
    assert "strategy" in err
    assert "--overwrite" in err


def test_nothing_is_printed_but_the_result(scan: Path, tmp_path: Path, cli: Cli) -> None:
    code, out, err = cli("reconstruct", scan, "-o", tmp_path / "r.h5", "--strategy", "tv", "--set", "steps=5")
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "\r" not in err  # no progress bar where there is no terminal


WRONG_PARAMETERS = [
    (("--strategy", "dsp"), "'dps'"),
    (("--strategy", "tv", "--set", "stpes=5"), "'steps'"),
    (("--strategy", "tv", "--set", "steps=many"), "steps='many' is not int"),
    (("--strategy", "tv", "--set", "steps"), "KEY=VALUE"),
    (("--strategy", "dps"), "needs a prior"),
    (("--strategy", "tv", "--noise", "gaussian:x"), "sigma='x' is not float"),
    (("--strategy", "tv", "--noise", "gausian:1"), "'gaussian'"),
    (("--strategy", "tv", "--device", "abacus"), "device"),
    (("--strategy", "tv", "--layout", "dxchagne"), "'dxchange'"),
    (("--strategy", "tv", "--scale", "1"), "LOW:HIGH"),
    (("--strategy", "tv", "--samples", "0"), "samples"),
    (("--strategy", "tv", "--samples", "few"), "samples"),
    (("--strategy", "dps", "--prior", "gausian-field"), "'gaussian-field'"),
    (("--strategy", "dps", "--prior", "gaussian-field"), "(1, 64, 64)"),
    (("--strategy", "tv", "--plugin", "missing.py"), "does not exist"),
    (("--strateg", "tv"), "strateg"),
]


@pytest.mark.parametrize(("options", "text"), WRONG_PARAMETERS)
def test_wrong_parameters_are_one_line_and_write_nothing(
    options: tuple, text: str, scan: Path, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "recon.h5"
    before = sorted(os.listdir(tmp_path))
    code, printed, err = cli("reconstruct", scan, "-o", out, *options)
    assert code == 2
    assert text in err
    assert len(err.strip().splitlines()) == 1, err
    assert not printed
    assert sorted(os.listdir(tmp_path)) == before


def edited(scan: Path, change: Callable[[h5py.File], object]) -> Path:
    path = scan.with_name("broken_scan.h5")
    path.write_bytes(scan.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def nan_in_y(file: h5py.File) -> None:
    y = file["y"][:]
    y[2, 3, 4] = np.nan
    file["y"][...] = y


def transpose_y(file: h5py.File) -> None:
    y = file["y"][:]
    del file["y"]
    file["y"] = y.transpose(0, 2, 1)


def drop_y(file: h5py.File) -> None:
    del file["y"]


def rename_operator(file: h5py.File) -> None:
    file["operator"].attrs["name"] = "tomograhpy-ct"


def wrong_parameter(file: h5py.File) -> None:
    file["operator"].attrs["angels"] = 3


def drop_noise(file: h5py.File) -> None:
    del file["noise"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (nan_in_y, "NaN"),
        (transpose_y, "axes look permuted"),
        (drop_y, "'y'"),
        (rename_operator, "unknown operator"),
        (wrong_parameter, "'angles'"),
        (drop_noise, "--noise"),
    ],
)
def test_broken_scans_are_one_line_and_write_nothing(
    change: Callable[[h5py.File], object], text: str, scan: Path, tmp_path: Path, cli: Cli
) -> None:
    broken = edited(scan, change)
    before = sorted(os.listdir(tmp_path))
    code, _, err = cli("reconstruct", broken, "-o", tmp_path / "recon.h5", "--strategy", "tv", "--set", "steps=5")
    assert code == 2, err
    assert text in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(os.listdir(tmp_path)) == before


def no_file(path: Path) -> None:
    pass


def not_hdf5(path: Path) -> None:
    path.write_text("a,b,c\n1,2,3\n")


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncated(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["y"] = np.zeros((100, 100))
    path.write_bytes(path.read_bytes()[:4000])


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["something"] = np.zeros(3)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (no_file, "no such file"),
        (not_hdf5, "HDF5"),
        (lfs_pointer, "LFS"),
        (truncated, "truncated"),
        (foreign, "layout"),
        (folder, "folder"),
    ],
)
def test_unreadable_inputs_are_one_line_and_write_nothing(
    make: Callable[[Path], object], text: str, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "input.h5"
    make(path)
    for command in (
        ("reconstruct", path, "-o", tmp_path / "out.h5", "--strategy", "linear"),
        ("evaluate", path),
        ("report", path, "-o", tmp_path / "p.png"),
    ):
        if text == "layout" and command[0] != "reconstruct":
            continue
        code, _, err = cli(*command)
        assert code == 2, err
        assert text in err
        assert len(err.strip().splitlines()) == 1, err
        assert not (tmp_path / "out.h5").exists()
        assert not (tmp_path / "p.png").exists()
        assert not list(tmp_path.glob("*.partial.h5"))


def test_simulate_refuses_what_it_cannot_do(images: Path, tmp_path: Path, cli: Cli) -> None:
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["x"] = np.zeros((4, 16, 16), "f4")
    for options, text in (
        ((images, "--operator", "ctt"), "'ct'"),
        ((images, "--operator", "blur"), "exactly one"),
        ((images, "--operator", "ct", "--set", "image_size=20"), "(1, 20, 20)"),
        ((tmp_path / "flat.h5", "--operator", "ct"), "channels"),
        ((images, "--operator", "ct", "--noise", "poisson:10"), ">= 0"),
    ):
        code, _, err = cli("simulate", options[0], "-o", tmp_path / "scan.h5", *options[1:])
        assert code == 2, err
        assert text in err
        assert len(err.strip().splitlines()) == 1, err
        assert not (tmp_path / "scan.h5").exists()


def test_every_command_explains_itself_on_one_screen(cli: Cli) -> None:
    for command in (
        "",
        "demo",
        "simulate",
        "reconstruct",
        "acquire",
        "evaluate",
        "report",
        "train",
        "prior",
        "prior show",
        "prior measure",
        "plugins",
        "plugins list",
        "plugins show",
        "plugins check",
        "plugins new",
        "bench posterior",
        "bench calibrate",
        "bench leaderboard",
    ):
        code, out, _ = cli(*command.split(), "--help")
        assert code == 0
        assert len(out.splitlines()) <= 60
        assert "Usage" in out


def test_plugins_list_and_show(cli: Cli) -> None:
    code, out, _ = cli("plugins", "list", "--json")
    assert code == 0
    listed = json.loads(out)
    assert "ct" in listed["operator"]
    assert "dps" in listed["strategy"]
    for names in listed.values():
        for name, text in names.items():
            assert text, name
            code, out, _ = cli("plugins", "show", name)
            assert code == 0
            assert name in out
    code, out, err = cli("plugins", "show", "dsp")
    assert code == 2
    assert "'dps'" in err


def test_version(cli: Cli) -> None:
    import invsolve

    assert cli("--version")[1].strip() == invsolve.__version__


def test_bench_posterior_measures_the_distance(cli: Cli) -> None:
    code, out, err = cli(
        "bench", "posterior", "--strategy", "moment", "--operator", "inpainting", "--samples", 128, "--json"
    )
    assert code == 0, err
    (row,) = json.loads(out)
    assert row["mean_error"] < 0.15
    assert 0.95 < row["std_observed"] < 1.05
    assert 0.95 < row["std_hidden"] < 1.05
    assert row["wasserstein"] < 1.5 * row["wasserstein_floor"]
    assert abs(row["coverage_90"] - 0.9) < 0.03
    assert row["evaluations"] <= 120
    code, _, err = cli("bench", "posterior", "--operator", "inpaint")
    assert code == 2
    assert "'inpainting'" in err
