"""Files that other files name or that lie beside them: a stranger's scan opens none, and a pipeline notices when one changes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import invsolve
from invsolve import Pipeline, UserError
from invsolve.datasets.hdf5 import fingerprint, write_scan
from invsolve.files.opening import open_measurement
from invsolve.pipeline.files import files_with
from invsolve.pipeline.keys import ingredients
from invsolve.pipeline.steps import Reconstruct
from tests.support.types import Cli


def scan(path: Path) -> Path:
    y = np.random.default_rng(0).random((1, 1, 16, 16), dtype=np.float32)
    write_scan(path, y, invsolve.operator("blur", sigma=1.0), invsolve.Gaussian(0.05))
    return path


@pytest.mark.parametrize(("operator", "parameter"), [("measured-blur", "picture"), ("blur", "kernel")])
@pytest.mark.parametrize("ending", ["png", "PNG", "tif"])
def test_a_strangers_scan_opens_no_picture(
    operator: str, parameter: str, ending: str, tmp_path: Path, cli: Cli
) -> None:
    """Pictures of point-spread functions are read by name where a person names them; a file from elsewhere must not."""
    secret = tmp_path / f"secret.{ending}"
    Image.fromarray(np.eye(7, dtype="u1") * 255).save(secret)
    path = scan(tmp_path / "scan.h5")
    with h5py.File(path, "a") as file:
        del file["operator"]
        group = file.create_group("operator")
        group.attrs["name"], group.attrs[parameter] = operator, str(secret)
    with pytest.raises(UserError, match="which is not followed"):
        open_measurement(path)
    code, _, err = cli("reconstruct", path, "-o", tmp_path / "r.h5", "--strategy", "linear")
    assert code == 2
    assert len(err.splitlines()) == 1


VALUES = np.arange(60, dtype=np.float32).reshape(4, 3, 5)


def _virtual(path: Path, file: str) -> Path:
    """A dataset x that is the x of another file."""
    layout = h5py.VirtualLayout(VALUES.shape, "f4")
    layout[...] = h5py.VirtualSource(file, "x", VALUES.shape)
    with h5py.File(path, "w") as here:
        here.create_virtual_dataset("x", layout)
    return path


@pytest.mark.parametrize("how", ["source", "source of a source", "link"])
def test_what_changes_in_another_file_changes_the_fingerprint(tmp_path: Path, how: str) -> None:
    """A run would go on, and a pipeline take from its store, what was made of other numbers."""
    with h5py.File(tmp_path / "far.h5", "w") as file:
        file["x"] = VALUES
    path = _virtual(tmp_path / "scan.h5", "far.h5")
    if how == "source of a source":
        path = _virtual(path, _virtual(tmp_path / "near.h5", "far.h5").name)
    elif how == "link":
        with h5py.File(path, "w") as file:
            file.create_group("entry")["x"] = h5py.ExternalLink("far.h5", "/x")
    before = fingerprint(path)
    assert fingerprint(path) == before
    with h5py.File(tmp_path / "far.h5", "a") as file:
        file["x"][0, 0, 0] += 1
    assert fingerprint(path) != before
    # A file alone keeps the hash of its bytes.
    assert "+" not in fingerprint(tmp_path / "far.h5")


def statuses(path: Path) -> list[object]:
    events: list[dict[str, object]] = []
    Pipeline.load(path).run(on_event=events.append)
    return [event["event"] for event in events if event["event"] in ("cached", "done")]


def test_a_pipeline_sees_that_the_source_of_its_scan_changed(tmp_path: Path) -> None:
    path = scan(tmp_path / "scan.h5")
    with h5py.File(path, "a") as file, h5py.File(tmp_path / "detector.h5", "w") as other:
        other["y"] = file["y"][()]
        del file["y"]
        file["y"] = h5py.ExternalLink("detector.h5", "y")
    text = '[steps.scan]\ntype = "load"\npath = "scan.h5"\n'
    (tmp_path / "p.toml").write_text(text + '[steps.r]\ntype = "reconstruct"\ninput = "scan"\nstrategy = "linear"\n')
    assert statuses(tmp_path / "p.toml") == ["done", "done"]
    assert statuses(tmp_path / "p.toml") == ["cached", "cached"]
    with h5py.File(tmp_path / "detector.h5", "a") as other:
        other["y"][...] = 0.5
    assert statuses(tmp_path / "p.toml") == ["done", "done"]


@pytest.mark.parametrize(
    ("layout", "name", "beside"),
    [
        ("bart", "k.cfl", "k.hdr"),
        ("nifti", "a.img", "a.hdr"),
        ("lodopab", "observation_test_000.hdf5", "ground_truth_test_000.hdf5"),
    ],
)
def test_files_that_layouts_read_beside_count(layout: str, name: str, beside: str, tmp_path: Path) -> None:
    for file in (name, beside):
        (tmp_path / file).write_bytes(b"x")
    assert files_with(tmp_path / name, layout) == [tmp_path / beside]


def test_the_side_file_of_a_prior_counts(tmp_path: Path) -> None:
    class Hashes:
        def of(self, path: Path) -> str:
            return path.read_text()

    (tmp_path / "net.pt").write_text("weights")
    step = Reconstruct(type="reconstruct", input="scan", prior=str(tmp_path / "net.pt"))
    keys = []
    for said in ("one", "other"):
        (tmp_path / "net.json").write_text(said)
        keys.append(ingredients(step, {}, (), Hashes()))  # type: ignore[arg-type]
    assert keys[0] != keys[1]


def test_noise_maps_of_every_kind_of_file_are_followed(tmp_path: Path) -> None:
    """As a .npy is, whose content decides the key of a step and whose name is seen from the pipeline's folder."""
    from invsolve.registry.written import files_in, with_absolute_files

    for ending in ("npy", "tif", "TIFF", "png"):
        (tmp_path / f"map.{ending}").write_bytes(b"")
        told = with_absolute_files(f"gaussian:map.{ending}", tmp_path)
        assert told == f"gaussian:{tmp_path}/map.{ending}"
        assert files_in(told) == [tmp_path / f"map.{ending}"]


def test_lists_in_the_text_of_a_noise_may_be_nested() -> None:
    noise = invsolve.noise("gaussian:[[[[0.1]]],[[[0.2]]]]")
    assert torch.equal(torch.as_tensor(noise.sigma).flatten(), torch.tensor([0.1, 0.2], dtype=torch.float64))  # type: ignore[attr-defined]


def test_a_pipeline_takes_priors_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --prior does: with parameters in the name, and of the hub, where a branch counts by its commit."""
    from invsolve.api import hub

    scan(tmp_path / "scan.h5")
    text = '[steps.scan]\ntype = "load"\npath = "scan.h5"\n[steps.r]\ntype = "reconstruct"\ninput = "scan"\n'

    def load(prior: str) -> Pipeline:
        (tmp_path / "p.toml").write_text(f'{text}strategy = "dds"\nset = {{steps = 3}}\nprior = "{prior}"\n')
        return Pipeline.load(tmp_path / "p.toml")

    load("gaussian-field:size=16,std=0.3").run()
    with pytest.raises(UserError, match="has no parameter 'sizes'"):
        load("gaussian-field:sizes=16")
    with pytest.raises(UserError, match="invsolve prior fetch"):
        load("hf:nobody/nothing")
    keys = []
    for commit in ("aaaa", "bbbb"):
        monkeypatch.setattr(hub, "pinned", lambda where, commit=commit: hub.Place(where.repository, commit))
        step = Reconstruct(type="reconstruct", input="scan", prior="hf:nobody/nothing")
        keys.append(ingredients(step, {}, (), None))  # type: ignore[arg-type]
    assert keys[0] != keys[1]
