"""The generated page of operators' properties: a row for each that is registered, and nothing broken in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from invsolve import registry
from invsolve.registry import properties
from tests.support.types import Cli

PAGE = Path(__file__).parents[2] / "docs" / "operators_table.md"
ADVICE = "write the page again: invsolve plugins check --markdown > docs/operators_table.md"


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [*properties.FACTS, *properties.FIGURES], ADVICE
    return {row[0].strip("`"): row for row in cells[2:]}


def test_every_registered_operator_has_its_row() -> None:
    assert sorted(rows()) == sorted(registry.available("operator")), ADVICE


@pytest.mark.parametrize("name", sorted(registry.available("operator")))
def test_a_row_says_what_the_operator_is(name: str) -> None:
    row = rows()[name]
    assert row[: len(properties.FACTS)] == properties.facts(name), ADVICE
    measured = dict(zip(properties.FIGURES, row[len(properties.FACTS) :], strict=True))
    assert "BROKEN" not in row
    assert measured["keeps nothing"] == "yes"
    if row[3].startswith("linear"):
        assert re.fullmatch(r"exact|1e-1\d", measured["adjoint"]), "not matched to double precision"


def test_figures_are_measured() -> None:
    # One value a pixel, all of which it keeps: norm 1 and a solution in closed form, to rounding.
    measured = dict(zip(properties.FIGURES, properties.figures("grey"), strict=True))
    assert measured["keeps nothing"] == "yes"
    for column in ("linearity", "adjoint", "norm", "proximal solve"):
        assert re.fullmatch(r"exact|1e-1\d", measured[column]), column


def test_a_broken_property_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = registry.find("operator", "grey")
    monkeypatch.setattr(cls, "adjoint", lambda self, y: 1.1 * y.repeat(1, 3, 1, 1))
    assert dict(zip(properties.FIGURES, properties.figures("grey"), strict=True))["adjoint"] == "BROKEN"


def test_check_without_a_target_says_what_it_needs(cli: Cli) -> None:
    code, _, told = cli("plugins", "check")
    assert code
    assert "needs FILE.py:CLASS" in told
