"""What is registered, as the tables of the README: one row per plugin, its texts taken from the class."""

from __future__ import annotations

from typing import Any

from invsolve import registry
from invsolve.contracts.noise import Noise
from invsolve.contracts.paper import Paper, papers_of
from invsolve.contracts.strategy import Strategy
from invsolve.engine.needs import takes_noise
from invsolve.registry.parameters import build

#: The columns of each kind behind the name.
_COLUMNS = {
    "operator": ("measures", "closed forms"),
    "noise": ("how y scatters", "strategies that take it"),
    "strategy": ("what it does", "network calls per step", "gives"),
    "prior": ("what it knows",),
    "layout": ("what it reads",),
    "policy": ("what is measured next", "decides by"),
}


def summary(cls: type) -> str:
    """The first line of a class's docstring."""
    return (cls.__doc__ or "").strip().split("\n")[0].strip()


def summaries(kind: str) -> dict[str, str]:
    """The first line on everything registered of a kind, by name; an alias tells what it is another name of."""
    texts = {name: summary(cls) for name, cls in registry.available(kind).items()}
    return dict(sorted((texts | {a: f"Another name of {n}" for a, n in registry.aliases(kind).items()}).items()))


def markdown(kind: str) -> str:
    """The table of a kind: a header, and one row per registered plugin.

    Strategies are ordered: those taken where none is named, then those that draw samples, then by name; other kinds by name.
    """
    known = registry.available(kind)
    names = sorted(known, key=lambda name: (*_place(known[name]), name))
    header = [kind, *_COLUMNS[kind]]
    rows = [header, ["---"] * len(header), *([_named(name, known[name]), *_cells(kind, known[name])] for name in names)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace(" --- ", "---")


def papers() -> str:
    """The table of what strategies implement: name, publication and what it builds on, and presets."""
    known = registry.available("strategy")
    rows = [["strategy", "paper", "presets"], ["---"] * 3]
    for name, cls in known.items():
        cited = "; ".join(map(_cited, papers_of(cls)))
        if cls.paper is None:  # type: ignore[attr-defined]
            cited = f"ours, after {cited}" if cited else "ours"
        presets = ", ".join(f"`{preset}`" for preset in cls.presets)  # type: ignore[attr-defined]
        rows.append([_named(name, cls), cited, presets])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace(" --- ", "---")


def _cited(paper: Paper) -> str:
    # Round brackets would end the link.
    address = paper.url.replace("(", "%28").replace(")", "%29")
    return f"[{paper.authors[0].split()[-1]} {paper.year}]({address}), {paper.title}"


def _named(name: str, cls: type) -> str:
    return ", ".join(f"`{n}`" for n in (name, *getattr(cls, "aliases", ())))


def _place(cls: type) -> tuple[float, bool]:
    if not issubclass(cls, Strategy):
        return 0.0, False
    return (float("inf") if cls.preference is None else cls.preference), not cls.draws


def _cells(kind: str, cls: Any) -> list[str]:
    text = summary(cls).removesuffix(".").replace("|", "\\|")
    if kind == "operator":
        return [text, cls.closed_forms]
    if kind == "strategy":
        return [text, cls.cost, "samples" if cls.draws else "one image"]
    if kind == "noise":
        return [text, _takers(cls)]
    if kind == "policy":
        return [text, "particles" if cls.particles else "the prior's covariance" if cls.covariance else "nothing"]
    return [text]


def _takers(cls: type[Noise]) -> str:
    """The strategies that have what they need of a noise, as in its first example."""
    noise = build(cls, "noise", cls.name, dict(cls.examples[0]))
    known = registry.available("strategy")
    takers = [name for name, other in known.items() if issubclass(other, Strategy) and takes_noise(other, noise)]
    return "all" if len(takers) == len(known) else f"`{' '.join(takers)}`"
