"""Posteriors of several modes: which strategy reaches the reference, at which cost. Writes multimodal.md beside it.

    OMP_NUM_THREADS=1 python benchmarks/multimodal.py
    OMP_NUM_THREADS=1 python benchmarks/multimodal.py --only phase

Quadratic problems against tempered sequential Monte Carlo, phase retrieval against the image, the 25-mode mixture against its
exact posterior. About an hour on one core, most of it phase retrieval.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from invsolve import bench

PAGE = Path(__file__).with_suffix(".md")
#: Strategies, draws and random problems of each part, and its problems.
PARTS = {
    "quadratic": (
        ["mmps", "dps-fitted", "daps", "pnp-dm", "restarts", "tds"],
        256,
        1,
        list(bench.family("quadratic").usual),
    ),
    "phase": (["mmps", "dps-fitted", "daps", "pnp-dm", "restarts"], 160, 1, ["coarse"]),
    "mixture": (["mmps", "daps", "pnp-dm", "score-sde", "mcgdiff", "tds"], 256, 6, ["d8-m1", "d8-m2"]),
}


def table(name: str) -> str:
    """One family: its legend, and a table of all problems and strategies."""
    strategies, samples, repeats, problems = PARTS[name]
    family = bench.family(name)
    rows = bench.bench_posterior(
        name, strategies, problems, None, samples, repeats, "cpu", lambda text: print(text, file=sys.stderr, flush=True)
    )
    head = ["problem", "strategy", *family.columns.values(), "evaluations", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row[key]:.2f}" if key in row else "-" for key in family.columns]
        cost = [f"{row['evaluations']:.0f}", f"{row['seconds']:.0f}"] if "evaluations" in row else ["-", "-"]
        lines.append(f"| {' | '.join([row['problem'], '`' + row['strategy'] + '`', *cells, *cost])} |")
    legend = family.legend.format(samples=samples, floor=samples**-0.5)
    return f"## {name}\n\n{legend} Random problems: {repeats}, of which the median.\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), help="write this part anew and keep the others")
    only = parser.parse_args().only
    title = "# Posteriors of several modes\n\nWritten by `python benchmarks/multimodal.py`; each strategy at its defaults.\n"
    kept = {}
    if only and PAGE.exists():
        parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
        kept = {part.split("\n")[0]: f"## {part.rstrip()}\n" for part in parts}
    for name in [only] if only else PARTS:
        kept[name] = table(name)
        ordered = [kept[part] for part in PARTS if part in kept]
        PAGE.write_text("\n".join([title, *ordered]), encoding="utf-8")


if __name__ == "__main__":
    main()
