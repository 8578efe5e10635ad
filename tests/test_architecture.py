"""The shape of the house: imports run one way, every plugin is registered, files stay small, the wheel is complete."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import invsolve
from invsolve import registry
from invsolve.parameters import parameters

ROOT = Path(__file__).parent.parent
FOLDERS = ("operators", "plugins", "datasets")
#: The engine: what may know no concrete operator, strategy, prior or layout, nor anybody further out.
ENGINE = (
    *("api", "batching", "collecting", "engine", "errors", "hooks", "metering", "needs", "parameters", "reading"),
    *("registry", "streaming", "testing"),
)
#: What turns files into files; it alone may read and write HDF5 through datasets/.
FILES = (
    *("bench", "checkpoints", "cli", "demo", "dryrun", "inspection", "jobs", "opening", "pipeline", "report", "shards"),
    "training",
)
FOREIGN_TO_CONTRACTS = ("torch", "numpy")


def _sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


HOUSE = _sources("invsolve", *FOLDERS)
EVERYTHING = [*HOUSE, *_sources("tests", "scripts", "examples", "benchmarks")]


def _module(file: Path) -> str:
    """The import path of a file of the house."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in FOLDERS:
        parts.insert(0, "invsolve")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _imports(file: Path) -> Iterator[str]:
    """Every name imported anywhere in a file, in full: `from a.b import c` is a.b.c; also modules named in text."""
    package = _module(file).split(".")[: None if file.name == "__init__.py" else -1]
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"invsolve(\.\w+)+", node.value)
        ):
            yield node.value


def _within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ours(file: Path) -> list[str]:
    return [name for name in _imports(file) if _within(name, "invsolve")]


def _ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", _sources("invsolve/contracts"), ids=_ids)
def test_contracts_import_contracts_torch_and_numpy(file: Path) -> None:
    for name in _imports(file):
        top = name.split(".")[0]
        outside = top in sys.stdlib_module_names or top in FOREIGN_TO_CONTRACTS
        assert outside or _within(name, "invsolve.contracts", "invsolve.errors"), f"{_ids(file)} imports {name}"


@pytest.mark.parametrize("file", _sources(*FOLDERS), ids=_ids)
def test_plugins_import_contracts_only(file: Path) -> None:
    folder = file.relative_to(ROOT).parts[0]
    for name in _ours(file):
        allowed = _within(name, "invsolve.contracts", "invsolve.errors", "invsolve.hookimpl")
        private = name.startswith(f"invsolve.{folder}._")
        assert allowed or private, (
            f"{_ids(file)} imports {name}; only contracts, errors, hookimpl and private siblings may be"
        )


@pytest.mark.parametrize("file", _sources("invsolve"), ids=_ids)
def test_the_engine_finds_plugins_through_the_registry(file: Path) -> None:
    where = _module(file).split(".")[1:2]
    for name in _ours(file):
        assert not _within(name, "invsolve.operators", "invsolve.plugins"), (
            f"{_ids(file)} imports {name}; use the registry"
        )
        if not where or where[0] not in FILES:
            assert not _within(name, "invsolve.datasets"), f"{_ids(file)} imports {name}; only {', '.join(FILES)} may"
        if where and where[0] in ENGINE:
            outer = [f"invsolve.{module}" for module in (*FILES, "check", "scaffold")]
            assert not _within(name, *outer), f"{_ids(file)} imports {name}, which is further out"


def test_only_the_command_line_stands_above_pipelines() -> None:
    for file in HOUSE:
        module = _module(file)
        for name in _ours(file):
            if not _within(module, "invsolve.pipeline", "invsolve.cli") and module != "invsolve":
                assert not _within(name, "invsolve.pipeline"), f"{_ids(file)} imports {name}, which is further out"
            if _within(module, "invsolve.pipeline"):
                assert not _within(name, "invsolve.cli"), f"{_ids(file)} imports {name}, which is further out"


@pytest.mark.parametrize("file", EVERYTHING, ids=_ids)
def test_nobody_imports_a_folder_by_its_bare_name(file: Path) -> None:
    for name in _imports(file):
        assert not _within(name, *FOLDERS), f"{_ids(file)} imports {name}; write invsolve.{name}"


def _entries() -> dict[str, str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["entry-points"]["invsolve"]


def _has_hook(file: Path) -> bool:
    functions = [node for node in _tree(file).body if isinstance(node, ast.FunctionDef)]
    return any(isinstance(d, ast.Name) and d.id == "hookimpl" for f in functions for d in f.decorator_list)


def test_every_plugin_module_has_one_entry_point() -> None:
    on_disk = {_module(file): 1 for file in _sources(*FOLDERS) if _has_hook(file)}
    assert dict(Counter(_entries().values())) == on_disk


def test_installed_entry_points_are_those_of_pyproject() -> None:
    found = {
        e.name: e.value
        for e in importlib.metadata.entry_points(group="invsolve")
        if e.dist and e.dist.name == "invsolve"
    }
    assert found == _entries(), "the installation is older than pyproject.toml: run pip install -e . again"


def test_every_built_in_is_registered() -> None:
    loaded = {name for name, _ in registry.manager().list_name_plugin()}
    assert set(_entries()) <= loaded


@pytest.mark.parametrize("file", EVERYTHING, ids=_ids)
def test_file_is_short_and_says_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    tree = _tree(file)
    assert ast.get_docstring(tree), "the first line must be a docstring that says what lives here"
    assert tree.body[0].lineno == 1
    stars = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
    assert not stars, f"star import on line {stars}"


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # -P: the working directory must not stand in for what is installed.
    return subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize(
    "statement",
    ["import invsolve", "import invsolve; invsolve.hookimpl", "from invsolve.cli.app import run; run(['--help'])"],
)
def test_import_and_help_do_not_import_torch(statement: str) -> None:
    done = _python("-X", "importtime", "-c", f"{statement}\nimport sys; sys.exit('torch' in sys.modules)")
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not [name for name in names if _within(name, "torch", "numpy", "scipy")]


@pytest.mark.parametrize("name", invsolve.__all__)
def test_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(invsolve, name)
    text = value.__doc__
    assert text
    # A dataclass without a docstring is given its signature as one.
    assert not text.startswith(f"{name}(")
    assert name in dir(invsolve)


def test_public_names_of_the_design() -> None:
    promised = {
        "reconstruct",
        "simulate",
        "load_prior",
        "operator",
        "strategy",
        "LinearOperator",
        "Operator",
        "MaskableOperator",
    }
    promised |= {"Strategy", "Prior", "Gaussian", "Poisson", "Reconstruction", "hookimpl", "testing"}
    assert promised <= set(invsolve.__all__)
    assert isinstance(invsolve.testing, ModuleType)
    assert {"check_operator", "check_strategy", "check_prior"} <= set(vars(invsolve.testing))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.available(kind)]
)
def test_registered_class_explains_itself_and_its_parameters(kind: str, name: str) -> None:
    cls = registry.find(kind, name)
    assert "__doc__" in vars(cls)
    assert inspect.getdoc(cls)
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # type: ignore[union-attr]
    silent = [p.name for p in parameters(cls) if not p.text]
    assert not silent, f"{kind} {name!r}: no text in the docstring's Args for {silent}"


@pytest.mark.slow
def test_wheel_is_complete(tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "typings", "shared")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
    # The back end itself, as `python -m build --wheel --no-isolation` calls it: needs no package `build`.
    command = [
        sys.executable,
        "-c",
        "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = {f"{_module(file).replace('.', '/')}{'/__init__' * (file.name == '__init__.py')}.py" for file in HOUSE}
    wanted |= {"invsolve/operators/ct.py", "invsolve/plugins/dps.py", "invsolve/py.typed"}
    wanted |= {f"invsolve/{folder}/py.typed" for folder in FOLDERS}
    wanted |= {f"invsolve/{file.relative_to(ROOT)}" for file in (ROOT / "plugins" / "weights").glob("*.safetensors")}
    wanted |= {str(file.relative_to(ROOT)) for file in (ROOT / "invsolve" / "templates").glob("*.txt")}
    wanted |= {
        str(f.relative_to(ROOT))
        for f in (ROOT / "invsolve" / "report").iterdir()
        if f.suffix in (".html", ".css", ".js")
    }
    assert wanted <= inside, sorted(wanted - inside)
    strays = {name.split("/")[0] for name in inside} - {"invsolve"}
    assert [name.rpartition(".")[2] for name in strays] == ["dist-info"], strays
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in inside)
