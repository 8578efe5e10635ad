"""The model cards in docs/priors.md say what the files of the bundled priors say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import invsolve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cards() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "model_cards.py"))


def test_the_page_is_as_the_script_writes_it(cards: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "priors.md").read_text(encoding="utf-8")
    assert cards["page"](text) == text, "run python scripts/model_cards.py"


def test_every_bundled_prior_has_a_card() -> None:
    text = (ROOT / "docs" / "priors.md").read_text(encoding="utf-8")
    weights = sorted(file.stem for file in (ROOT / "plugins" / "priors" / "weights").glob("*.safetensors"))
    assert weights
    for name in weights:
        prior = invsolve.load_prior(name)
        card = text.split(f"### {name}\n")[1].split("###")[0]
        low, high = prior.data_range or (0.0, 0.0)
        assert f"{low:g} to {high:g}" in card
        assert "CC BY" in card or "Unsplash" in card
        assert (ROOT / "benchmarks" / "curves" / f"{name}.samples.png").stat().st_size < 400_000
