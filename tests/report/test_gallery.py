"""The gallery: drawn for whatever is registered, and its page is what the script writes."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from invsolve import registry
from invsolve.datasets import hdf5
from tests.support.types import Cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def gallery() -> Iterator[Any]:
    """The script as a module, with its neighbour."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("gallery")
    finally:
        sys.path.remove(str(ROOT / "scripts"))
        for name in ("gallery", "gallery_scenes"):
            sys.modules.pop(name, None)


def shown(path: Path) -> list[np.ndarray]:
    """The five parts of a picture."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"), dtype=float)
    return np.array_split(grey[30:], 5, axis=1)


def test_every_kind_of_image_is_drawn(gallery: Any, tmp_path: Path) -> None:
    names = ["blur-3d", "clip", "compressive", "ct", "demosaic", "mri"]
    gallery.main(["--small", "-o", str(tmp_path), "--only", *names])
    assert sorted(p.stem for p in (tmp_path / "gallery").iterdir()) == names
    for name in names:
        x, y, back, linear, moment = (part.std() for part in shown(tmp_path / "gallery" / f"{name}.webp"))
        assert min(x, y, moment) > 10, name
        # White with a word, where the operator is not linear.
        assert (min(back, linear) > 10) == (name != "clip"), name
    page = (tmp_path / "gallery.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.M) == names


@pytest.mark.slow
def test_everything_registered_is_drawn(gallery: Any, tmp_path: Path) -> None:
    gallery.main(["--small", "-o", str(tmp_path)])
    assert {p.stem for p in (tmp_path / "gallery").iterdir()} == set(registry.available("operator"))


PLUGIN = '''
import torch
import invsolve


class Edges(invsolve.LinearOperator):
    """Differences of neighbours in a row: y[i, j] = x[i, j + 1] - x[i, j]."""

    def __init__(self, image_size: int = 8) -> None:
        self.image_shape = (1, image_size, image_size)

    def forward(self, x):
        return x.diff()


@invsolve.hookimpl
def invsolve_operators():
    return {"edges": Edges}
'''


def test_a_new_plugin_is_drawn_because_it_is_there(gallery: Any, tmp_path: Path) -> None:
    (tmp_path / "edges.py").write_text(PLUGIN)
    gallery.main(["--small", "-o", str(tmp_path), "--plugin", str(tmp_path / "edges.py"), "--only", "edges"])
    assert (tmp_path / "gallery" / "edges.webp").is_file()
    page = (tmp_path / "gallery.md").read_text()
    assert "`y[i, j] = x[i, j + 1] - x[i, j]`" in page
    assert 'invsolve.operator("edges", image_size=32)' in page


def test_the_page_is_what_the_script_writes_and_its_pictures_are_small(gallery: Any) -> None:
    pictures = sorted((DOCS / "gallery").iterdir())
    names = [path.stem for path in pictures]
    assert set(names) <= set(registry.available("operator"))
    written = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert written == gallery.page(names, gallery.FULL[0]), "run python scripts/gallery.py --page"
    assert sum(path.stat().st_size for path in pictures) < 3e6


@pytest.mark.slow
def test_the_pages_commands_run(gallery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    for path in sorted((DOCS / "gallery").iterdir()):
        scene = gallery.scene(path.stem, gallery.FULL[0], None)
        assert scene.measure() in (DOCS / "gallery.md").read_text(encoding="utf-8")
        for key, file in scene.files.items():
            np.save(file, scene.given[key])
        hdf5.write_images(tmp_path / "x.h5", scene.x, overwrite=True)
        code, _, err = cli(*shlex.split(scene.measure())[1:], "--overwrite")
        assert code == 0, f"{path.stem}: {err}"
        code, _, err = cli(*shlex.split(scene.reconstruct())[1:], "--set", "steps=2", "--dry-run", "--overwrite")
        assert code == 0, f"{path.stem}: {err}"
