"""Write the model cards in docs/priors.md: what each bundled prior's header says, with the claims and licences of its page.

    python scripts/model_cards.py

The test of the docs holds the page to it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import invsolve

ROOT = Path(__file__).parents[1]
PAGE, DATA = ROOT / "docs" / "priors.md", ROOT / "docs" / "bundled-priors.md"
BEGIN, END = "<!-- cards: python scripts/model_cards.py -->", "<!-- end of the cards -->"
#: Prior -> the paragraph of docs/bundled-priors.md that begins the table of its data.
SOURCES = {"ct-128": "CT, ", "mr-128": "MR, ", "mr-complex-128": "MR, ", "natural": "Photographs, "}


def cards() -> str:
    """All of them, in the order of their names."""
    return "\n\n".join(card(name) for name in SOURCES)


def card(name: str) -> str:
    prior: Any = invsolve.load_prior(name)
    header, data = prior.header, DATA.read_text(encoding="utf-8")
    training, split = header["training"], header["training"]["data"]["split"]
    what, values, *_ = (" ".join(part.split()) for part in (type(prior).__doc__ or "").split("\n\n"))
    low, high = prior.data_range
    curve = header["error_curve"]
    claim = re.findall(
        rf"^\| `{name}` \| (.+) \|$", between(data, "How far they can be believed", "These six"), re.MULTILINE
    )
    levels = re.findall(
        r"^\| name \| (.+) \|$", between(data, "How far they can be believed", "These six"), re.MULTILINE
    )
    settings = training["settings"]
    rows = [
        ("images", f"{what.removesuffix(' (bundled).')}; {values}"),
        ("values", f"{low:g} to {high:g} {prior.unit}".strip() + f"; {header['event_shape'][0]} channel(s), network -1 to 1"),
        ("network", f"`{header['architecture']['class']}`, {sum(p.numel() for p in prior.parameters()) / 1e6:.2f} M weights, "
                    f"{header['dtype']}; noise levels {prior.sigma_min:g} to {prior.sigma_max:g}"),
        ("trained", f"{split['train']} images, {split['validation']} of others held out; {training['steps']} steps of "
                    f"{settings['batch_size']} in {training['minutes']:g} min on {training['device']}, {training['precision']}, "
                    f"torch {training['versions']['torch']}"),
        ("sources and licences", sources(name, data)),
        ("weights' licence", "that of invsolve; to be passed on with the attributions above"),
        ("error, root mean square", ", ".join(
            f"{mse**0.5:.3g} at {sigma:.3g}" for sigma, mse in zip(curve["sigma"][::3], curve["mse"][::3], strict=True))),
        ("error over its own claim", ", ".join(
            f"{v} at {s.removeprefix('sigma ')}" for s, v in zip(levels[0].split(" | "), claim[0].split(" | "), strict=True))),
        ("Gaussian of its images", f"{' x '.join(map(str, prior.gaussian.mean.shape[1:]))} modes of "
                                   f"{' x '.join(map(str, prior.gaussian.size))} pixels, off; `gaussian_above=`"),
        ("what it draws", f"[{name}.samples.png](../benchmarks/curves/{name}.samples.png)"),
        ("limits", "[what they cannot do](bundled-priors.md#what-they-cannot-do)"),
    ]  # fmt: skip
    return f"### {name}\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {text} |" for key, text in rows)


def sources(name: str, data: str) -> str:
    """Each source with its licence, as the page's table or sentence has them."""
    text = between(data, f"\n{SOURCES[name]}", "\n## ")
    part = text.split("\n\n")
    if name == "natural":
        return " ".join(part[0].split(": ", 1)[1].split())
    rows = re.findall(r"^\| (?!source)([^|]+) \| \d+ \| [^|]+ \| ([^|]+) \|$", part[1], re.MULTILINE)
    return "; ".join(f"{source} ({licence})" for source, licence in rows)


def between(text: str, begin: str, end: str) -> str:
    start = text.index(begin)
    return text[start : text.index(end, start + 1)]


def page(text: str) -> str:
    """The page with the cards as they are now."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{cards()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
