"""A publication that a plugin rests on: who wrote it, where it is found, and its BibTeX entry."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

#: Where an identifier leads to, by the word before its colon; anything else is a web address itself.
_RESOLVERS = {
    "arXiv": "https://arxiv.org/abs/",
    "doi": "https://doi.org/",
    "openreview": "https://openreview.net/forum?id=",
}
#: Letters that mean something to TeX.
_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_"}


@dataclass(frozen=True)
class Paper:
    """A publication.

    Attributes:
        title: as printed.
        authors: "Given names Family", in their order.
        year: of publication, of a preprint that of its first version.
        identifier: "arXiv:2302.04265", "doi:10.1364/JOSA.62.000055", "openreview:ID", or an address that begins with https.
    """

    title: str
    authors: tuple[str, ...]
    year: int
    identifier: str

    @property
    def url(self) -> str:
        """The address at which it is found."""
        word, _, rest = self.identifier.partition(":")
        return f"{_RESOLVERS[word]}{rest}" if word in _RESOLVERS else self.identifier

    @property
    def key(self) -> str:
        """Family name of the first author, year and first long word of the title, in plain letters: rozet2024learning."""
        word = next((w for w in re.findall(r"\w+", self.title) if len(w) > 3), "paper")
        name = self.authors[0].split()[-1]
        plain = unicodedata.normalize("NFKD", f"{name}{self.year}{word}")
        return re.sub(r"[^a-z0-9]", "", plain.lower())

    @property
    def line(self) -> str:
        """The paper in one line: authors, up to three, year, title, identifier."""
        named = ", ".join(self.authors) if len(self.authors) <= 3 else f"{self.authors[0]} et al."
        return f"{named} ({self.year}). {self.title}. {self.identifier}"

    def bibtex(self) -> str:
        """Its BibTeX entry; letters beyond ASCII stay as they are, in UTF-8."""
        fields = {
            # Double braces keep the capitals.
            "title": f"{{{_escaped(self.title)}}}",
            "author": " and ".join(map(_escaped, self.authors)),
            "year": str(self.year),
        }
        word, _, rest = self.identifier.partition(":")
        if word == "arXiv":
            fields |= {"eprint": rest, "archiveprefix": "arXiv"}
        elif word == "doi":
            fields["doi"] = rest
        return entry("misc", self.key, fields | {"url": self.url})

    def record(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {
            "title": self.title,
            "authors": list(self.authors),
            "year": self.year,
            "identifier": self.identifier,
        }

    @classmethod
    def from_record(cls, fields: Mapping[str, Any]) -> Self:
        """The paper of `record`."""
        return cls(
            str(fields["title"]), tuple(map(str, fields["authors"])), int(fields["year"]), str(fields["identifier"])
        )


def papers_of(thing: Any) -> tuple[Paper, ...]:
    """What a plugin, class or instance, rests on: its `paper`, then what it `builds_on`; empty where it states none."""
    paper, others = getattr(thing, "paper", None), getattr(thing, "builds_on", ())
    # The class of a view has descriptors there, which only an instance answers.
    first = (paper,) if isinstance(paper, Paper) else ()
    return first + (others if isinstance(others, tuple) else ())


def bibliography(papers: Iterable[Paper]) -> str:
    """BibTeX of papers, each once, in their order."""
    return "\n\n".join(paper.bibtex() for paper in dict.fromkeys(papers))


def entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    """A BibTeX entry of fields in TeX's letters; empty ones are left out."""
    return f"@{kind}{{{key},\n" + "".join(f"  {name} = {{{text}}},\n" for name, text in fields.items() if text) + "}"


def _escaped(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
