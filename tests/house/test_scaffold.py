"""What `invsolve plugins new` writes: it loads, its own test passes, and bad names are refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from invsolve import registry
from invsolve.errors import UserError
from invsolve.registry.scaffold import Kind, write_plugin

KINDS = get_args(Kind)


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    plugins = registry.manager()
    before = plugins.get_plugins()
    yield
    for module in plugins.get_plugins() - before:
        plugins.unregister(module)
    registry.finding._mapping.cache_clear()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "operator" else pytest.mark.slow) for k in KINDS])
def test_generated_plugin_loads_and_its_test_passes(kind: Kind, tmp_path: Path) -> None:
    plugin, test = write_plugin("my-scanner", kind, tmp_path / "new")
    assert [plugin.name, test.name] == ["my_scanner.py", "test_my_scanner.py"]
    module = registry.load_file(plugin)
    assert registry.find(kind, "my-scanner") is module.MyScanner
    with pytest.raises(UserError, match="registered already"):
        write_plugin("my-scanner", kind, tmp_path / "other")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name]
    done = subprocess.run(command, cwd=plugin.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("name", ["", "my scanner", "my_scanner", "../up", "3d", "-x", "x-", "a--b", "größe", "x\n"])
def test_name_must_be_letters_digits_hyphens(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="letters, digits") as caught:
        write_plugin(name, "operator", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("blur", "operator", "registered already"),
        ("dps", "strategy", "registered already"),
        ("gaussian-field", "prior", "registered already"),
        ("linear-operator", "operator", "clash"),
        ("tensor", "prior", "clash"),
        ("none", "operator", "clash"),
        ("problem", "strategy", "clash"),
        ("torch", "operator", "hide"),
    ],
)
def test_name_must_be_free(name: str, kind: Kind, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        write_plugin(name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["my_scanner.py", "test_my_scanner.py"])
def test_existing_files_are_left_alone(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(UserError, match="exists"):
        write_plugin("my-scanner", "operator", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_plugin("my-scanner", "operator", tmp_path / "file")


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="operator, strategy, prior"):
        write_plugin("my-scanner", "solver", tmp_path)  # type: ignore[arg-type]
