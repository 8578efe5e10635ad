"""One door: noises enter as everything else does, layouts open at once, names are told apart, nothing is known by name."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import integrate

import invsolve
from invsolve import registry
from invsolve.api import choice
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.contracts.strategy import Strategy
from invsolve.registry.scaffold import write_plugin
from invsolve.registry.written import read_written

ROOT = Path(__file__).parents[2]


@pytest.fixture
def outliers(tmp_path: Path) -> Path:
    """A stranger's plugin file with the noise `outliers`, registered here too."""
    plugin = write_plugin("outliers", "noise", tmp_path / "plugin")[0]
    registry.load_file(plugin)
    return plugin


def test_a_strangers_noise_goes_from_file_to_file(
    outliers: Path, images: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    plugin = ("--plugin", outliers)
    scan, recon = tmp_path / "scan.h5", tmp_path / "recon.h5"
    blur = ("--operator", "blur", "--set", "sigma=1")
    code, _, err = cli("simulate", images, "-o", scan, *blur, "--noise", "outliers:0.02", *plugin)
    assert code == 0, err
    with h5py.File(scan) as file:
        assert dict(file["noise"].attrs) == {"name": "outliers", "scale": 0.02}
        misfit = file["y"][:] - invsolve.operator("blur", sigma=1.0)(torch.from_numpy(file["truth"][:])).numpy()
    # The mean absolute value of n Laplace numbers is their scale, give or take scale / sqrt(n).
    assert abs(np.abs(misfit).mean() / 0.02 - 1) < 5 / np.sqrt(misfit.size)
    prior = invsolve.load_prior("gaussian-field", size=16)
    opened = registry.find("layout", "invsolve")().open(scan, invsolve.make)
    assert opened.noise == invsolve.noise("outliers:0.02") == invsolve.noise("outliers", scale=0.02)
    with pytest.raises(
        invsolve.UserError, match="'dps-fitted' needs noise that Gaussian noise of its mean and variance can"
    ):
        invsolve.reconstruct(opened, prior=prior, strategy="dps-fitted")
    with warnings.catch_warnings():
        # So few steps may miss the data.
        warnings.simplefilter("ignore", DiscrepancyWarning)
        rec = invsolve.reconstruct(opened, prior=prior, strategy=invsolve.strategy("daps", steps=4))
    assert rec.provenance["noise"] == {"name": "outliers", "scale": 0.02}
    code, _, err = cli("reconstruct", scan, "-o", recon, "--strategy", "linear", *plugin)
    assert code == 2
    assert re.search(r"needs Gaussian noise; it is outliers", err)
    assert err.count("\n") == 1


def test_pipelines_and_calibration_take_it(
    outliers: Path, images: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    text = f"""plugins = ["{outliers}"]
[steps.truth]
type = "load"
path = "{images}"
[steps.scan]
type = "simulate"
input = "truth"
operator = "blur"
set = {{sigma = 1.0}}
noise = "outliers:0.1"
to = "scan.h5"
"""
    file = tmp_path / "p.toml"
    file.write_text(text)
    code, _, err = cli("run", "--trust", file)
    assert code == 0, err
    with h5py.File(tmp_path / "scan.h5") as scan:
        assert dict(scan["noise"].attrs) == {"name": "outliers", "scale": 0.1}
    file.write_text(text.replace("outliers:0.1", "outliers:-1"))
    code, _, err = cli("run", "--trust", file, "--dry-run")
    assert code == 2
    assert "scale must be > 0" in err
    blurred = ("--operator", "blur", "--set", "sigma=1")
    given = ("--prior", "gaussian-field", "--set-prior", "size=8", "--noise", "outliers:0.1", "--strategy", "daps")
    more = ("--set-strategy", "steps=3", "--trials", 10, "--samples", 3, "--plugin", outliers)
    code, _, err = cli("bench", "calibrate", *blurred, *given, *more)
    assert code == 0, err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (0.05, r"got 0.05, which does not say of what kind.*invsolve.Gaussian\(0.05\)"),
        (invsolve.Gaussian, "noise is the class Gaussian, expected one made of it"),
        ("gaussian", "needs sigma"),
        ("gaussian:", "write gaussian:SIGMA"),
        ("gaussian:1,2", "write gaussian:SIGMA"),
        ("gaussian:loud", "sigma='loud' is not float"),
        ("gaussian:nan", "sigma must be >= 0"),
        ("poisson:-1", "gain must be > 0"),
        ("gauss:1", "Did you mean 'gaussian'"),
    ],
)
def test_a_wrong_noise_is_one_line(given: object, text: str) -> None:
    blur = invsolve.operator("blur", sigma=1.0)
    for call in (
        lambda: invsolve.simulate(torch.zeros(1, 1, 4, 4), blur, given),  # type: ignore[arg-type]
        lambda: invsolve.reconstruct(torch.zeros(1, 1, 4, 4), blur, noise=given, strategy="linear"),  # type: ignore[arg-type]
    ):
        with pytest.raises(invsolve.UserError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_noise_as_text_is_the_noise() -> None:
    blur = invsolve.operator("blur", sigma=1.0)
    truth = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = invsolve.simulate(truth, blur, "gaussian:0.05", seed=3)
    assert torch.equal(y, invsolve.simulate(truth, blur, invsolve.Gaussian(0.05), seed=3))
    given = invsolve.reconstruct(y, blur, noise="gaussian:0.05", strategy="linear")
    assert torch.equal(given.mean, invsolve.reconstruct(y, blur, noise=invsolve.Gaussian(0.05), strategy="linear").mean)
    assert read_written("noise", "gaussian:[0.1, 0.2]")[1] == {"sigma": [0.1, 0.2]}
    assert read_written("noise", "gaussian:sigma=5e-2")[1] == {"sigma": 0.05}


@pytest.mark.parametrize("name", ["daps", "pnp-dm"])
def test_a_strangers_noise_gives_the_posterior_by_quadrature(name: str, outliers: Path) -> None:
    # White pixels of standard deviation 0.3, each measured with Laplace noise: the posterior of a pixel is one integral.
    std, scale, datum = 0.3, 0.2, 0.5
    prior = invsolve.load_prior("gaussian-field", spectrum=std**2 * torch.ones(8, 8))
    keep = invsolve.operator("inpainting", mask=torch.ones(8, 8, dtype=torch.bool))
    y = torch.full((1, 1, 8, 8), datum)
    samples = invsolve.reconstruct(
        y, keep, prior, noise=f"outliers:{scale}", strategy=name, samples=24, seed=0, batch_size=24
    ).samples.flatten()

    def moment(power: int) -> float:
        density = lambda x: x**power * np.exp(-(x**2) / (2 * std**2) - abs(datum - x) / scale)  # noqa: E731
        return integrate.quad(density, -3, 3, points=[datum], limit=200)[0]

    mean = moment(1) / moment(0)
    spread = (moment(2) / moment(0) - mean**2) ** 0.5
    cls = registry.find("strategy", name)
    # What the strategy claims of its bias, and five standard errors of 1536 pixels.
    assert abs(float(samples.mean()) - mean) < spread * (cls.mean_error + 5 / len(samples) ** 0.5)  # type: ignore[attr-defined]
    low, high = cls.std_ratio  # type: ignore[attr-defined]
    assert low <= float(samples.std()) / spread <= high


def test_things_of_different_kinds_never_share_a_name() -> None:
    for one, other in itertools.combinations(registry.KINDS, 2):
        assert not set(registry.available(one)) & set(registry.available(other)), (one, other)


def test_every_layout_opens_after_import_invsolve_alone(tmp_path: Path) -> None:
    from tests.conformance.test_layouts import EXAMPLES

    paths = {}
    for name, (_, write) in EXAMPLES.items():
        (tmp_path / name).mkdir()
        paths[name] = str(write(tmp_path / name))
    options = {name: given for name, (given, _) in EXAMPLES.items()}
    code = """
import invsolve, json, sys
for name, (path, options) in json.loads(sys.argv[1]).items():
    from invsolve.files.opening import open_images, open_measurement
    try:
        print(name, len(open_measurement(path, name, options).y))
    except invsolve.UserError:
        print(name, len(open_images(path, name, options).x))
"""
    given = json.dumps({name: (paths[name], options[name]) for name in paths})
    command = [sys.executable, "-P", "-c", code, given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(registry.available("layout"))


#: The demonstration and the bench pose problems that are made of built-ins; everything else asks the registry.
_SCENES = ("invsolve/cli/demo.py", "invsolve/bench/", "invsolve/cli/bench.py")
#: Functions and keywords whose text is a plugin's name, and the attribute that holds one.
_CALLS = ("operator", "strategy", "noise", "policy", "load_prior", "find", "make")
_KEYWORDS = ("operator", "strategy", "prior", "layout", "noise", "policy", "name")


def _sources() -> list[Path]:
    files = sorted((ROOT / "invsolve").rglob("*.py"))
    return [f for f in files if not str(f.relative_to(ROOT)).startswith(_SCENES)]


def _texts(tree: ast.Module) -> Iterator[tuple[ast.Constant, ast.AST]]:
    """Texts that the program uses, each with the node around it; docstrings are left out."""
    for parent in ast.walk(tree):
        if isinstance(parent, ast.Expr):
            continue
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.Constant) and isinstance(child.value, str):
                yield child, parent


def _names_a_plugin(parent: ast.AST) -> bool:
    """Whether a text stands where a plugin's name does."""
    if isinstance(parent, ast.keyword):
        return parent.arg in _KEYWORDS
    if isinstance(parent, ast.Call):
        return getattr(parent.func, "attr", getattr(parent.func, "id", "")) in _CALLS
    if isinstance(parent, ast.Compare):
        return any(isinstance(n, ast.Attribute) and n.attr == "name" for n in ast.walk(parent))
    return False


def _words() -> set[str]:
    """Words that the code itself uses: functions, variables, modules, needs, formats; they mean more than a plugin."""
    trees = [ast.parse(f.read_text(encoding="utf-8")) for f in _sources()]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    words = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    words |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)} | {
        n.arg for n in nodes if isinstance(n, ast.arg)
    }
    # Packages that plugins are named after.
    plugins = [ast.parse(f.read_text(encoding="utf-8")) for f in (ROOT / "plugins").rglob("*.py")]
    imports = [n for tree in plugins for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import)]
    words |= {a.name for n in imports for a in n.names} | {
        n.module or "" for n in imports if isinstance(n, ast.ImportFrom)
    }
    return {w.strip("_") for w in words}


def test_no_built_in_is_known_by_name() -> None:
    kinds = {name: kind for kind in registry.KINDS for name in registry.available(kind)}
    # The layout of our own files is called as we are.
    del kinds[invsolve.__name__]
    # The contract defines these two, so the code may spell them; what a strategy can need is written with the same words.
    ordinary = _words() | {
        n for n, c in registry.available("noise").items() if c.__module__.startswith("invsolve.contracts")
    }
    ordinary |= {need for cls in registry.available("strategy").values() for need in cls.needs}  # type: ignore[attr-defined]
    guilty = []
    for file in _sources():
        for text, parent in _texts(ast.parse(file.read_text(encoding="utf-8"))):
            value = str(text.value)
            if re.fullmatch(r"invsolve(\.\w+)+", value):
                continue  # An import path, which the architecture test judges.
            for name in kinds:
                equal = value == name and (name not in ordinary or _names_a_plugin(parent))
                inside = name not in ordinary and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", value)
                option = re.search(rf"--(strategy|prior|operator|layout) {re.escape(name)}\b", value)
                if equal or inside or option:
                    guilty.append(
                        f"{file.relative_to(ROOT)}:{text.lineno}: {kinds[name]} {name!r} in {text.value[:60]!r}"
                    )
    assert not guilty, "\n".join(guilty)


@pytest.mark.discrepant
def test_alternatives_are_those_whose_needs_are_met(cli: Callable[..., tuple[int, str, str]]) -> None:
    class Square(invsolve.Operator):
        """The square of each pixel."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    prior = invsolve.load_prior("gaussian-field", size=8)
    with pytest.raises(invsolve.UserError, match="needs a linear operator") as caught:
        invsolve.reconstruct(torch.ones(1, 1, 8, 8), Square(), prior, noise="gaussian:0.1", strategy="dds")
    listed = str(caught.value).rpartition("; ")[2].removesuffix(" would do").split(", ")
    assert listed[0] == choice.preferred()[0]
    for name in listed:
        if name == "...":
            continue
        invsolve.reconstruct(
            torch.ones(1, 1, 8, 8), Square(), prior, noise="gaussian:0.1", strategy=_short(name), samples=1
        )


def _short(name: str) -> Strategy:
    return invsolve.strategy(name).at_cost(8)
