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
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import invsolve
from invsolve import registry
from invsolve.registry.parameters import parameters

ROOT = Path(__file__).parents[2]
FOLDERS = ("operators", "plugins", "datasets")
#: From the ground up; a module imports from its own floor and the ones below. `pytest -s` prints who lives where.
FLOORS = (
    *(
        "errors",
        "numerics",
        "contracts",
        "networks",
        "operators",
        "plugins",
        "datasets",
        "engine",
        "testing",
        "registry",
    ),
    *("api", "files", "training", "bench", "acquisition", "jobs", "report", "pipeline", "cli"),
)
#: The wings are found through the registry, so nobody imports from them, but for what is public: files, phantoms, geometries,
#: masks of k-space.
WINGS = ("operators", "plugins", "datasets")
PUBLIC = (
    *("invsolve.datasets.hdf5", "invsolve.datasets.phantoms"),
    *("invsolve.operators.ct.geometry", "invsolve.operators.mri.masks"),
)
#: The front doors, `import invsolve` and `python -m invsolve`, are on no floor.
DOORS = ("__init__.py", "__main__.py")


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


def _floor(name: str) -> str:
    """The floor of an import path: the part behind `invsolve`."""
    return name.split(".")[1]


def _loaded(name: str) -> str:
    """The import path of the module that a name is loaded from; a public name of `invsolve` comes from its home."""
    if name.count(".") == 1 and name.split(".")[1] in invsolve.HOME:
        return f"{invsolve.HOME[name.split('.')[1]]}.{name.split('.')[1]}"
    return name


def test_every_module_is_on_a_floor() -> None:
    loose = {f.name for f in (ROOT / "invsolve").glob("*.py")} - {*DOORS, "errors.py"}
    assert not loose, f"loose in invsolve/: {sorted(loose)}; move each to its floor"
    rooms = {_floor(_module(file)) for file in HOUSE if _module(file) != "invsolve"} - {"__main__"}
    assert rooms == set(FLOORS)
    for floor in FLOORS:
        files = [file for file in HOUSE if f".{floor}" in _module(file) and _floor(_module(file)) == floor]
        print(f"{floor:12} {len(files):3} files")


@pytest.mark.parametrize("file", [f for f in HOUSE if f.parent.name != "invsolve" or f.name not in DOORS], ids=_ids)
def test_imports_run_down_the_floors(file: Path) -> None:
    here = _floor(_module(file))
    for name in map(_loaded, _ours(file)):
        if name == "invsolve" or (name.count(".") == 1 and name.split(".")[1] == "__version__"):
            continue
        there = _floor(name)
        assert there in FLOORS, f"{_ids(file)} imports {name}, which is on no floor"
        assert FLOORS.index(there) <= FLOORS.index(here), f"{_ids(file)} imports {name}, a floor further up"
        if there in WINGS and there != here:
            assert _within(name, *PUBLIC), f"{_ids(file)} imports {name}; find it through the registry"


PACKAGES = {_module(file) for file in HOUSE if file.name == "__init__.py"}


@pytest.mark.parametrize("file", HOUSE, ids=_ids)
def test_nobody_imports_the_private_names_of_another_package(file: Path) -> None:
    package = _module(file).rpartition(".")[0] if file.name != "__init__.py" else _module(file)
    for name in _ours(file):
        owner, _, last = next((name[: m.start()], "", m.group()[1:]) for m in re.finditer(r"$|\._[a-z]\w*", name))
        if last and not last.startswith("__"):
            # What is private in a module belongs to its package, what is private in a package to that package alone.
            home = owner if owner in PACKAGES else owner.rpartition(".")[0]
            assert _within(package, home), f"{_ids(file)} imports {name}, private there"


def test_there_are_no_circles() -> None:
    """Also none that an import inside a function hides: those count as any other."""
    modules = {_module(file): file for file in HOUSE if file.name not in DOORS}
    edges = {
        m: {t for n in _ours(f) for t in (n, n.rpartition(".")[0]) if t in modules and t != m}
        for m, f in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for following in sorted(edges[module]):
                visit(following, (*way, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


@pytest.mark.parametrize("file", _sources("invsolve/numerics"), ids=_ids)
def test_numerics_know_tensors_only(file: Path) -> None:
    for name in _imports(file):
        top = name.split(".")[0]
        outside = top in sys.stdlib_module_names or top in ("torch", "numpy", "scipy")
        assert outside or _within(name, "invsolve.numerics", "invsolve.errors"), f"{_ids(file)} imports {name}"


@pytest.mark.parametrize("file", EVERYTHING, ids=_ids)
def test_nobody_imports_a_folder_by_its_bare_name(file: Path) -> None:
    for name in _imports(file):
        assert not _within(name, *FOLDERS), f"{_ids(file)} imports {name}; write invsolve.{name}"


def _entries() -> dict[str, str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["entry-points"]["invsolve"]


def test_there_is_one_entry_point_a_wing() -> None:
    assert set(_entries().values()) == {
        f"invsolve.{path}"
        for path in (
            "operators",
            "plugins.strategies",
            "plugins.priors",
            "plugins.noises",
            "plugins.policies",
            "datasets.layouts",
        )
    }


def test_installed_entry_points_are_those_of_pyproject() -> None:
    entries = {
        e.name: e.value
        for e in importlib.metadata.entry_points(group="invsolve")
        if e.dist and e.dist.name == "invsolve"
    }
    assert entries == _entries(), "the installation is older than pyproject.toml: run pip install -e . again"


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
    return subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True, timeout=300, check=True)


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
    assert not cls.__doc__.startswith(f"{cls.__name__}(")
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
    wanted |= {"invsolve/operators/ct/operator.py", "invsolve/plugins/strategies/dps.py", "invsolve/py.typed"}
    wanted |= {f"invsolve/{folder}/py.typed" for folder in FOLDERS}
    wanted |= {
        f"invsolve/{file.relative_to(ROOT)}" for file in (ROOT / "plugins" / "priors" / "weights").glob("*.safetensors")
    }
    wanted |= {str(file.relative_to(ROOT)) for file in (ROOT / "invsolve" / "registry" / "templates").glob("*.txt")}
    wanted |= {
        str(f.relative_to(ROOT))
        for f in (ROOT / "invsolve" / "report").iterdir()
        if f.suffix in (".html", ".css", ".js")
    }
    assert wanted <= inside, sorted(wanted - inside)
    strays = {name.split("/")[0] for name in inside} - {"invsolve"}
    assert [name.rpartition(".")[2] for name in strays] == ["dist-info"], strays
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in inside)
