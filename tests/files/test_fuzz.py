"""Every reader against files that are damaged or hostile: the right answer, or one line; no traceback, no hang, nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve import Geometry, registry
from invsolve.datasets.hdf5 import glance
from invsolve.errors import UserError
from invsolve.files.opening import open_images, open_measurement
from invsolve.operators.ct.geometry import SUFFIXES
from tests.conformance.test_layouts import EXAMPLES
from tests.operators.test_ct_files import DETECTOR, nikon, rtk
from tests.priors.test_prior_files import ARCHITECTURE, HEADER_FACTS, make_network, save
from tests.support.acquisition import Columns, bench
from tests.support.fuzzing import Watched, harm_bytes, harm_hdf5, harmless_hdf5, walls
from tests.support.pipelines import TEXT, write
from tests.support.results import write_result
from tests.support.types import Cli

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

#: What is in the file that nothing may read.
SECRET = 7654321.0
SECONDS, MEMORY = 20, 3 * 2**30
#: Lines of a command that say why it stopped where the file is not at fault but the numbers in it are.
NOT_FINITE = ("NaN or infinite", "not finite")


@dataclass
class Reader:
    """A kind of file: its folder, the file in it, and the commands that read it.

    Attributes:
        path: the file, or folder.
        commands: arguments; PATH and OUT stand for the file and an output.
        options: of the layout, where the file is a scan or images.
        opens: reads the file from Python, to the end or to one line; None for what commands alone read.
    """

    path: Path
    commands: list[list[str]]
    layout: str = ""
    options: dict[str, Any] | None = None
    opens: Callable[[Path], Any] | None = None


def _images(folder: Path) -> Path:
    with h5py.File(folder / "images.h5", "w") as file:
        file["x"] = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
        file["volume"] = [0, 0]
        file.attrs["unit"] = "HU"
    return folder / "images.h5"


def _picture(folder: Path, ending: str) -> Path:
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (16, 17)).astype("u1")
    Image.fromarray(values).save(folder / f"a.{ending}")
    return folder / f"a.{ending}"


def _tiff(folder: Path) -> Path:
    import tifffile

    values = np.random.default_rng(0).integers(0, 255, (3, 16, 17)).astype("u2")
    tifffile.imwrite(folder / "a.tif", values, photometric="minisblack")
    return folder / "a.tif"


def _prior(folder: Path) -> Path:
    torch.manual_seed(0)
    save(folder / "tiny.safetensors", make_network(ARCHITECTURE).state_dict(), HEADER_FACTS, torch.float32)
    return folder / "tiny.safetensors"


def _diffusers(folder: Path) -> Path:
    from tests.priors.test_formats_diffusers import diffusers
    from tests.priors.test_formats_diffusers import folder as saved

    return saved(folder, diffusers.DDPMScheduler())


def _pipeline(folder: Path) -> Path:
    plain = TEXT.replace('plugins = ["./slow.py"]\n', "").replace(
        'prior = "slow"\nstrategy = "dds"\nset = {steps = "${steps}"}\nsamples = 2', 'strategy = "linear"'
    )
    return write(folder, plain)


def _session(folder: Path) -> Reader:
    """A session of `acquire` that waits for an answer, as the one who goes on with it opens it."""
    case = bench(Columns())

    def opens(path: Path) -> invsolve.Session:
        settings: dict[str, Any] = {"policy": "uniform", "budget": 4, "particles": 2, "file": path}
        return invsolve.acquire(case.operator, case.prior, noise=invsolve.Gaussian(0.05), **settings)

    session = opens(folder / "session.h5")
    session.tell(session.ask(), case.y)
    session.ask()
    with h5py.File(folder / "session.h5", "a") as file:
        # As particles leave it, which take longer to draw.
        shapes = {"mean": (1, 1, 12, 12), "std": (1, 1, 12, 12), "scores": (1, 12)}
        file["history/told"] = np.array([1], np.int32)
        for name, shape in shapes.items():
            file[f"history/{name}"] = np.ones(shape, np.float32)
    return Reader(folder / "session.h5", [LOOK, ["report", "PATH", "-o", "OUT.html"]], opens=opens)


def _geometry(ending: str, folder: Path) -> Reader:
    path, more = folder / f"scan.{ending}", {}
    if ending == "xtekct":
        path = nikon(folder)
    elif ending == "xml":
        path, more = rtk(folder), dict(DETECTOR)
    else:
        Geometry(beam="fan", image_size=[8, 9], angles=5, source_distance=20.0, centre=6.2).to_file(path)
    image = folder.parent / "image.h5"
    with h5py.File(image, "w") as file:
        file["x"] = np.ones((1, 1, *Geometry.from_file(path, **more).image_size), np.float32)
    simulate = ["simulate", str(image), "-o", "OUT.h5", "--operator", "ct", "--set", "geometry=PATH"]
    return Reader(path, [LOOK if more else simulate], opens=lambda path: Geometry.from_file(path, **more))


SIMULATE = ["simulate", "PATH", "-o", "OUT.h5", "--operator", "blur", "--set", "sigma=1"]
LOOK = ["inspect", "PATH", "--json"]
OF_RESULTS = [LOOK, ["evaluate", "PATH"], ["report", "PATH", "-o", "OUT.html"], ["join", "PATH", "-o", "OUT.h5"]]
OF_PRIORS = [["prior", "show", "PATH", "--json"], LOOK]


def reader(name: str, folder: Path) -> Reader:
    """A good file of a kind, and what reads it."""
    if name in EXAMPLES:
        options, make = EXAMPLES[name]
        read = [part for key, value in options.items() for part in ("--read", f"{key}={value}")]
        more = ["--noise", "gaussian:0.1"] if name == "array" else []
        recon = ["reconstruct", "PATH", "-o", "OUT.h5", "--strategy", "linear", "--layout", name, *read, *more]
        last = [*SIMULATE, *read] if name in ("dicom", "nifti") else recon
        return Reader(make(folder), [[*LOOK, *read], [*LOOK, "--layout", name, *read], last], name, options)
    if name in ("result", "partial"):
        path = write_result(folder / "r.h5", 2, (1, 16, 16), 2, done=None if name == "result" else 1)
        return Reader(path, OF_RESULTS)
    if name == "pipeline":
        return Reader(_pipeline(folder), [["run", "PATH", "--dry-run"], ["run", "PATH", "--points"]])
    if name in ("prior", "diffusers"):
        return Reader(_prior(folder) if name == "prior" else _diffusers(folder), OF_PRIORS)
    if name == "session":
        return _session(folder)
    if name in SUFFIXES:
        return _geometry(name[1:], folder)
    if name == "images":
        return Reader(_images(folder), [LOOK, SIMULATE])
    return Reader(_tiff(folder) if name == "tif" else _picture(folder, name), [LOOK, SIMULATE])


READERS = [
    *EXAMPLES,
    "images",
    "png",
    "jpg",
    "tif",
    "result",
    "partial",
    "prior",
    "diffusers",
    "pipeline",
    "session",
    *SUFFIXES,
]
#: Cases of each; those that take longest have fewer.
CASES = dict.fromkeys(READERS, 16) | dict.fromkeys(("array", "dxchange", "nxtomo", "result", "partial"), 12)
CASES |= {"bart": 8, "fastmri": 8, "ismrmrd": 8, "diffusers": 6, "pipeline": 8, "session": 10}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file beside the folder of the reader, which nothing may open."""
    path = tmp_path_factory.mktemp("outside") / "secret.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.full((3, 4, 5), SECRET)
    return path


@pytest.fixture
def watched(outside: Path) -> Iterator[Watched]:
    watch = Watched(outside.parent)
    yield watch
    watch.close()


def _state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _content(where: Reader, path: Path) -> list[torch.Tensor]:
    """All numbers that a layout reads."""
    cls: Any = registry.find("layout", where.layout)
    if cls.open is not registry.find("layout", "dicom").open:  # type: ignore[attr-defined]
        scan = open_measurement(path, where.layout, where.options)
        return [scan.y[0 : len(scan.y)], *([] if scan.truth is None else [scan.truth[0 : len(scan.truth)]])]
    images = open_images(path, where.layout, where.options)
    return [images.x[0 : len(images.x)]]


def _check(cli: Cli, command: list[str], folder: Path, what: str, watched: Watched) -> int:
    before = _state(folder)
    watched.names()
    # As for a person: a damaged file may well deserve a warning, which is one line. Only the suite makes it an error.
    with walls(SECONDS, MEMORY), warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = cli(*command)
    told = f"{what}\n{' '.join(command)}\n{out[-2000:]}\n{err[-4000:]}"
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert code in (0, 2) or (code == 1 and any(word in lines[-1] for word in NOT_FINITE)), told
    assert all(line.startswith("invsolve: ") for line in lines), told
    if code:
        assert out == "", told
        partial = folder / "out.h5.partial.h5"
        if command[0] == "reconstruct" and (kept := glance(partial)) and kept.done:
            # Damage in a later item: what was finished before is kept.
            partial.unlink()
        assert _state(folder) == before, told
    elif "--json" in command:
        _strict(out)
    assert all(line.isprintable() and len(line) < 10_000 for line in (out + err).replace("\r", "\n").splitlines()), told
    assert str(int(SECRET)) not in out + err, told
    after = _state(folder)
    assert {name: after.get(name) for name in before} == before, told
    assert not watched.names(), told
    for name in set(after) - set(before):
        os.unlink(folder / name)
    return code


@pytest.mark.parametrize("name", READERS)
def test_the_right_answer_or_one_line(name: str, tmp_path: Path, outside: Path, watched: Watched, cli: Cli) -> None:
    (tmp_path / "good").mkdir()
    good = reader(name, tmp_path / "good")
    inside = good.path.relative_to(tmp_path / "good")
    content = _content(good, good.path) if good.layout else []

    @hypothesis.settings(
        max_examples=CASES[name], suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate]
    )
    @hypothesis.given(seed=st.integers(0, 2**32 - 1))
    def case(seed: int) -> None:
        rng = random.Random(seed)
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        path = folder / inside
        file = rng.choice(sorted(p for p in (path.rglob("*") if path.is_dir() else folder.rglob("*")) if p.is_file()))
        hdf5, same = h5py.is_hdf5(file), False
        if hdf5 and rng.random() < 0.15:
            what, same = harmless_hdf5(file, rng, outside), True
        elif hdf5 and rng.random() < 0.8:
            what = harm_hdf5(file, rng, outside)
        else:
            what = harm_bytes(file, rng)
        command = rng.choice(good.commands)
        given = [part.replace("PATH", str(path)).replace("OUT", str(folder / "out")) for part in command]
        code = _check(cli, given, folder, f"{what} (seed {seed})", watched)
        if same:
            assert code == 0, what
            if good.layout:
                assert all(map(torch.equal, _content(good, path), content)), what
        elif code == 0 and good.layout:
            # What was opened is also read, to the end or to one line.
            with walls(SECONDS, MEMORY), contextlib.suppress(UserError), warnings.catch_warnings():
                warnings.simplefilter("default")
                _content(good, path)
        if good.opens is not None:
            with walls(SECONDS, MEMORY), warnings.catch_warnings():
                warnings.simplefilter("default")
                with contextlib.nullcontext() if same else contextlib.suppress(UserError):
                    good.opens(path)

    case()
