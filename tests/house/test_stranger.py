"""A stranger's package, one plugin of each kind, installed with pip beside invsolve: found, checked and used by name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import invsolve
from invsolve import registry
from invsolve.datasets import hdf5
from invsolve.registry.scaffold import write_plugin

#: The public names of a stranger: those of `invsolve` itself and of the file library.
PUBLIC = {"invsolve": set(invsolve.__all__), "invsolve.datasets.hdf5": set(hdf5.__all__)}


@pytest.mark.slow
def test_a_strangers_package_passes_the_kit(tmp_path: Path) -> None:
    package = tmp_path / "source" / "stranger"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Plugins of a stranger."""\n')
    entries = []
    for kind in registry.KINDS:
        name = f"strange-{kind}"
        file = write_plugin(name, kind, package)[0]  # type: ignore[arg-type]
        entries.append(f'{kind} = "stranger.{file.stem}"')
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("invsolve"):
                assert {a.name for a in node.names} <= PUBLIC[str(node.module)], f"{file.name}: {ast.unparse(node)}"
    (package.parent / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "stranger"\nversion = "1"\n[tool.setuptools]\npackages = ["stranger"]\n'
        "[project.entry-points.invsolve]\n" + "\n".join(entries) + "\n"
    )
    target = tmp_path / "installed"
    quiet = ["-q", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "--no-index"]
    pip = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(package.parent)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> str:
        line = [sys.executable, "-P", "-m", "invsolve", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr
        return done.stdout

    listed = command("plugins", "list")
    for kind in registry.KINDS:
        assert f"strange-{kind}" in listed
        assert "FAIL" not in command("plugins", "check", f"strange-{kind}")
