"""`invsolve inspect`: what a file is, what is missing, and commands that run as they are printed."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from invsolve.datasets.hdf5 import write_images
from invsolve.errors import UserError
from invsolve.jobs import reconstruction
from tests.conformance.test_layouts import EXAMPLES
from tests.support.ct_files import write_dxchange, write_nxtomo
from tests.support.mri_files import ismrmrd_lines, write_fastmri, write_lines
from tests.support.results import write_result
from tests.support.types import Cli, CliProcess
from tests.support.volumes import PRIOR


@pytest.fixture
def look(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Inspect a file from an empty working folder: what it found."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments: object) -> dict:
        code, out, err = cli("inspect", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def run(cli: Cli, command: str, *more: str) -> Path:
    """Run a printed command; returns what it wrote."""
    words = shlex.split(command)
    assert words[0] == "invsolve"
    code, _, err = cli(*words[1:], *more)
    assert code == 0, err
    return Path(words[words.index("-o") + 1])


def with_prior(summary: dict) -> str:
    (command,) = [c["command"] for c in summary["commands"] if c["does"] == "with a prior"]
    return command


def quick(summary: dict) -> str:
    return summary["commands"][0]["command"]


def test_dxchange(tmp_path: Path, look: Callable[..., dict[str, Any]], cli: Cli) -> None:
    twin = write_dxchange(tmp_path / "twin.h5")
    summary = look(twin)
    assert (summary["kind"], summary["layout"]) == ("measurement", "dxchange")
    assert summary["y"] == {"items": 2, "shape": [36, 40], "dtype": "float32", "axes": "row angle detector"}
    assert summary["operator"]["name"] == "ct"
    assert summary["operator"]["angles"] == "36, 0 to 175"
    assert summary["image"]["unit"] == "1/pixel"
    assert summary["noise"]["sigma"] > 0
    text = " | ".join(summary["missing"])
    assert "rotation centre: searched" in text
    assert "pixel size: the image is in 1/pixel" in text
    assert summary["datasets"]["exchange/data"] == "(36, 2, 40) uint16"
    with h5py.File(run(cli, quick(summary))) as file:
        assert file["mean"].shape == (2, 1, 40, 40)
    assert "--prior ct-128" in with_prior(summary)
    code, out, _ = cli("inspect", twin)
    assert code == 0
    for part in ("measured", "operator", "images", "noise", "missing:", "a quick look:", quick(summary)):
        assert part in out


def test_nxtomo_with_options(tmp_path: Path, look: Callable[..., dict[str, Any]], cli: Cli) -> None:
    summary = look(write_nxtomo(tmp_path / "scan.nxs"), "--read", "thin=2", "--read", "centre=18.4")
    assert summary["layout"] == "nxtomo"
    assert summary["y"]["shape"] == [18, 40]
    assert quick(summary).endswith("--strategy linear --read thin=2 --read centre=18.4")
    run(cli, quick(summary))


@pytest.mark.parametrize("layout", ["fastmri", "ismrmrd"])
def test_mri(layout: str, tmp_path: Path, look: Callable[..., dict[str, Any]], cli: Cli) -> None:
    path = tmp_path / "a scan.h5"
    write_fastmri(path) if layout == "fastmri" else write_lines(path, ismrmrd_lines())
    summary = look(path)
    assert summary["layout"] == layout
    assert summary["image"]["shape"] == [1, 32, 30]
    assert summary["image"]["complex"] is True
    assert any(line.startswith("coil maps: calibrated") for line in summary["missing"])
    assert any(line.startswith("noise level") for line in summary["missing"]) == (layout == "fastmri")
    with h5py.File(run(cli, quick(summary))) as file:
        assert file["mean"].shape == (2, 2, 32, 30)
    if layout == "fastmri":
        recon = run(cli, with_prior(summary).replace("steps=100", "steps=2"))
        with h5py.File(recon) as file:
            assert file["mean"].shape == file["linear"].shape == (2, 2, 32, 30)
        assert summary["truth"]
        for name in (recon, "a scan_pinv.h5"):
            code, out, err = cli("evaluate", name)
            assert code == 0, err
            assert "PSNR" in out


def test_arrays_are_guessed_and_then_read(tmp_path: Path, look: Callable[..., dict[str, Any]], cli: Cli) -> None:
    path = tmp_path / "volume.npy"
    np.save(path, np.random.default_rng(0).random((3, 12, 12), np.float32))
    summary = look(path)
    assert "no names for its axes" in summary["problem"]
    named = look(*shlex.split(summary["commands"][0]["command"])[2:])
    assert (named["kind"], named["image"]["shape"]) == ("images", [1, 12, 12])
    scan = run(cli, quick(named))
    assert look(scan)["layout"] == "invsolve"
    run(cli, quick(look(scan)))
    sinograms = look(*shlex.split(summary["commands"][1]["command"])[2:], "--read", "centre=5.5")
    assert sinograms["noise"] is None
    assert "--noise gaussian:" in quick(sinograms)
    run(cli, quick(sinograms))


def test_unknown_hdf5_lists_what_it_holds(tmp_path: Path, look: Callable[..., dict[str, Any]]) -> None:
    path = tmp_path / "lab.h5"
    with h5py.File(path, "w") as file:
        file["run 1/counts"] = np.ones((5, 9, 8))
        file["data"] = np.ones((2, 362, 362), np.float32)
        file["names"] = ["a", "b"]
    summary = look(path)
    assert summary["kind"] == "unknown"
    assert summary["datasets"]["run 1/counts"] == "(5, 9, 8) float64"
    commands = [c["command"] for c in summary["commands"]]
    assert commands[0].endswith("--layout lodopab")
    ours = [c for c in commands if "'dataset=run 1/counts'" in c]
    assert len(ours) == 2
    for command in (commands[0], *ours):
        look(*shlex.split(command)[2:], *(["--read", "centre=3.5"] if "angles" in command else []))


def test_own_files(images: Path, tmp_path: Path, look: Callable[..., dict[str, Any]], cli: Cli) -> None:
    summary = look(images)
    assert (summary["kind"], summary["image"]["items"]) == ("images", 5)
    scan = run(cli, quick(summary))
    measured = look(scan)
    assert (measured["layout"], measured["truth"]) == ("invsolve", True)
    recon = run(cli, quick(measured))
    result = look(recon)
    assert (result["kind"], result["strategy"], result["prior"]) == ("result", "linear", None)
    assert [c["command"].split()[1] for c in result["commands"]] == ["report", "evaluate"]
    run(cli, result["commands"][0]["command"])
    from invsolve import registry

    bundled = Path(registry.__file__).parents[2] / "plugins" / "priors" / "weights"
    for file in bundled.glob("*.safetensors"):
        prior = look(file)
        assert prior["kind"] == "prior"
        assert cli(*shlex.split(prior["commands"][0]["command"])[1:])[0] == 0


def test_a_file_that_cannot_be_read_as_it_stands(tmp_path: Path, look: Callable[..., dict[str, Any]]) -> None:
    twin = write_dxchange(tmp_path / "twin.h5")
    with h5py.File(twin, "a") as file:
        del file["exchange/theta"]
    summary = look(twin)
    assert summary["layout"] == "dxchange"
    assert "angles are never invented" in summary["problem"]
    assert summary["commands"] == []


def test_mistakes_are_one_line(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "empty.h5").write_bytes(b"")
    for arguments, expected in [
        ((tmp_path / "empty.h5",), "is empty"),
        ((tmp_path / "missing.h5",), "no such file"),
        ((tmp_path,), "is a folder"),
        ((tmp_path / "empty.h5", "--layout", "fastmir"), "unknown layout 'fastmir'. Did you mean 'fastmri'?"),
        ((tmp_path / "empty.h5", "--layout", "dxchange", "--read", "thn=2"), "no parameter 'thn'"),
    ]:
        code, out, err = cli("inspect", *arguments)
        assert (code, out) == (2, "")
        assert expected in err
        assert err.count("\n") == 1


def test_inspect_in_a_process_of_its_own(tmp_path: Path, cli_process: CliProcess) -> None:
    """Nothing else has been imported there: a layout must still come by its operators."""
    process = cli_process("inspect", write_dxchange(tmp_path / "twin.h5"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "invsolve reconstruct" in out


#: Readings under which a layout's example is looked at, beside none.
READINGS = {"array": ["axes=item,angle,detector", "angles=6", "values=integrals", "centre=4"], "lodopab": ["thin=250"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXAMPLES, "images", "result"])
def test_every_command_that_is_printed_runs(
    name: str,
    tmp_path: Path,
    look: Callable[..., dict[str, Any]],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as the first step: what comes before it can fail, and a network on a large image takes minutes."""

    def prepared(*given: object) -> None:
        raise UserError("all is prepared")

    monkeypatch.setattr(reconstruction, "run_into_file", prepared)
    (tmp_path / "example").mkdir()
    if name in EXAMPLES:
        path = EXAMPLES[name][1](tmp_path / "example")
    elif name == "images":
        write_images(
            path := tmp_path / "example" / "-x.h5", np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
        )
    else:
        path = write_result(tmp_path / "example" / "r.h5", 1, (1, 16, 16), 2)
    (tmp_path / "own.py").write_text(PRIOR)
    # What is unusual on its way: a name that begins with a dash, a plugin of one's own, options.
    os.chdir(path.parent)
    plugin = ("--plugin", tmp_path / "own.py")
    named = ("--layout", name) if name in EXAMPLES else ()
    ran = set()
    for way in (plugin, (*named, *[part for text in READINGS.get(name, []) for part in ("--read", text)])):
        facts = look(f"./{path.name}" if path.name.startswith("-") else path, *way)
        for command in (entry["command"] for entry in facts["commands"]):
            assert (str(tmp_path / "own.py") in command) == (way is plugin and " evaluate " not in command), command
            code, _, err = cli(*shlex.split(command)[1:])
            assert code == 0 or "all is prepared" in err.splitlines()[-1], f"{command}\n{err}"
            ran.add(command)
            words = shlex.split(command)
            if "-o" in words:
                Path(words[words.index("-o") + 1]).unlink(missing_ok=True)
    assert ran


def test_images_of_one_value_and_of_none(tmp_path: Path, look: Callable[..., dict[str, Any]], cli: Cli) -> None:
    write_images(tmp_path / "one.h5", np.full((1, 1, 1, 1), 3.0, np.float32))
    (command,) = look(tmp_path / "one.h5")["commands"]
    assert "gaussian:0.01" in command["command"]
    run(cli, command["command"])
    write_images(tmp_path / "none.h5", np.full((1, 1, 8, 8), np.nan, np.float32))
    facts = look(tmp_path / "none.h5")
    assert facts["commands"] == []
    assert any("NaN" in line for line in facts["missing"])
    assert facts["image"]["range_of_first"] == [None, None]
