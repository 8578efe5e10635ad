"""Papers as data, BibTeX of results, and names that are another's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.contracts.paper import Paper, bibliography, papers_of
from invsolve.contracts.plugin import BrokenPluginWarning
from invsolve.registry import tables
from tests.support.types import Cli

ROOT = Path(__file__).parents[2]
IDENTIFIER = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,}/\S+|openreview:[\w-]+|https://\S+")
STATED = [(kind, n) for kind in registry.KINDS for n, cls in registry.available(kind).items() if papers_of(cls)]


def entries(bibtex: str) -> dict[str, dict[str, str]]:
    """BibTeX, read: key -> fields, without the braces around them."""
    read = {}
    for _, key, body in re.findall(r"^@(\w+)\{(\w+),\n(.*?)^\}$", bibtex, re.MULTILINE | re.DOTALL):
        fields = re.findall(r"^  (\w+) = \{(.*)\},$", body, re.MULTILINE)
        assert len(fields) == body.count("\n")
        read[key] = {name: value.strip("{}") for name, value in fields}
    return read


@pytest.mark.parametrize(("kind", "name"), STATED)
def test_a_stated_paper_is_whole(kind: str, name: str) -> None:
    for paper in papers_of(registry.find(kind, name)):
        assert IDENTIFIER.fullmatch(paper.identifier)
        assert 1900 <= paper.year <= 2026
        number = re.match(r"arXiv:(\d\d)(\d\d)\.", paper.identifier)
        # A preprint is as old as its number says, or printed some time later.
        assert number is None or 0 <= paper.year - 2000 - int(number[1]) <= 1
        assert all(len(author.split()) >= 2 for author in paper.authors)
        assert entries(paper.bibtex())[paper.key]["author"] == " and ".join(paper.authors)
        assert Paper.from_record(json.loads(json.dumps(paper.record()))) == paper


def test_every_strategy_states_a_paper_or_none() -> None:
    without = {n for n, cls in registry.available("strategy").items() if not papers_of(cls)}
    assert without == {"linear"}


def test_no_two_papers_have_one_key() -> None:
    papers = {p for kind, name in STATED for p in papers_of(registry.find(kind, name))}
    assert len({p.key for p in papers}) == len(papers)
    assert len({p.identifier for p in papers}) == len(papers)


def test_letters_that_tex_reads_are_escaped() -> None:
    paper = Paper("Noise & 5% of #1_a", ("Zoë Brontë-Łuk",), 2020, "https://example.org/a_b")
    assert paper.key == "bronteuk2020noise"
    text = paper.bibtex()
    assert r"{{Noise \& 5\% of \#1\_a}}" in text
    assert "url = {https://example.org/a_b}" in text
    assert bibliography([paper, paper]) == text


def test_a_result_cites_strategy_operator_prior_and_invsolve() -> None:
    scanner, noise = invsolve.operator("ct", image_size=8, angles=6), invsolve.Gaussian(0.5)
    y = invsolve.simulate(torch.zeros(1, 1, 8, 8), scanner, noise)
    prior = invsolve.load_prior("gaussian-field", size=8)
    rec = invsolve.reconstruct(y, scanner, prior, noise=noise, strategy="diffpir", samples=1)
    cited = entries(rec.citation())
    assert list(cited) == ["zhu2023denoising", "joseph1982improved", "invsolve"]
    assert cited["joseph1982improved"]["doi"] == "10.1109/TMI.1982.4307572"
    assert cited["zhu2023denoising"]["eprint"] == "2305.08995"
    file = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"title: {cited['invsolve']['title']}\n" in file
    assert f'name: "{cited["invsolve"]["author"]}"\n' in file
    assert f"version: {cited['invsolve']['version']}\n" in file
    assert cited["invsolve"]["version"] == invsolve.__version__


def test_an_alias_is_taken_wherever_a_name_is(cli: Cli) -> None:
    assert registry.aliases("strategy")["moment"] == "mmps"
    assert invsolve.strategy("moment", steps=7) == invsolve.strategy("mmps", steps=7)
    assert "moment" not in registry.available("strategy")
    code, out, _ = cli("plugins", "show", "moment", "--json")
    shown = json.loads(out)
    assert (code, shown["name"], shown["aliases"]) == (0, "mmps", ["moment"])
    assert shown["papers"][0]["authors"][0] == "François Rozet"
    listed = json.loads(cli("plugins", "list", "--json")[1])["strategy"]
    assert listed["moment"] == "Another name of mmps"
    assert "| `mmps`, `moment` |" in tables.markdown("strategy")
    with pytest.raises(invsolve.UserError, match=r"Did you mean 'moment'\?"):
        invsolve.strategy("momemt")


def test_presets_are_shown(cli: Cli) -> None:
    code, out, _ = cli("plugins", "show", "diffpir")
    assert code == 0
    assert "preset=published: steps=100, variance=paper, weight=1.0, zeta=0.1" in out
    assert "Paper: Yuanzhi Zhu et al. (2023). Denoising Diffusion Models" in out


def test_an_alias_that_is_taken_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    cls: Any = registry.find("strategy", "dds")
    monkeypatch.setattr(cls, "aliases", ("dps",))
    with pytest.warns(BrokenPluginWarning, match="alias 'dps' of strategy 'dds' skipped: that name is taken"):
        assert "dps" not in registry.aliases("strategy")


def test_the_table_of_papers_is_generated() -> None:
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    table = page.split("<!-- papers -->\n")[1].split("\n<!-- end -->")[0]
    assert table == tables.papers(), "write invsolve.registry.tables.papers() between the marks"
