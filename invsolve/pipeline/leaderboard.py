"""Published tables on the user's copy of their data: a pipeline file each, and its outcome as rows with coverage and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from invsolve.errors import UserError, suggestion
from invsolve.pipeline.pipeline import Pipeline, Results

#: Figures of a row, by the metric's name, in the order of the table.
COLUMNS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "coverage_50": "in 50 %",
    "coverage_90": "in 90 %",
    "evaluations": "evaluations",
    "seconds": "seconds",
}


def setups() -> list[str]:
    """Names of the published set-ups."""
    folder = resources.files("invsolve.pipeline").joinpath("leaderboards")
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".toml"))


def write_setup(name: str, folder: Path) -> Path:
    """Put the pipeline file of a set-up into a folder, unless it is there, where it may be changed; returns its path.

    Raises:
        UserError: an unknown name, or a folder that cannot be written.
    """
    if name not in setups():
        raise UserError(f"unknown leaderboard {name!r}.{suggestion(name, setups())}")
    text = resources.files("invsolve.pipeline").joinpath("leaderboards", f"{name}.toml").read_text(encoding="utf-8")
    file = folder / f"{name}.toml"
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}); choose another folder") from None
    return file


def run_leaderboard(
    name: str,
    folder: Path,
    changes: Mapping[str, Any],
    plugins: Sequence[Path] = (),
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run a set-up, or go on with it, and gather its rows; what is done already is not done again.

    Args:
        name: of the set-up.
        folder: of the pipeline file and of everything that is computed.
        changes: dotted name -> value, as for `invsolve run --set`; `variables.data` is the file of the images.
        plugins: plugin files.
        only: branches to run; None for all.
        say: told of the plan.

    Returns:
        A row a case and method: `case`, `method`, the figures of `COLUMNS` where there are any (evaluations and seconds a
        sample), and `linear` where the linear baseline was scored, its PSNR.
    """
    file = write_setup(name, folder)
    pipeline = Pipeline.load(file, changes, plugins)
    plan = pipeline.plan(list(only) if only else None)
    say(str(plan))
    return rows_of(pipeline.run(plan, keep_going=True))


def rows_of(results: Results) -> list[dict[str, Any]]:
    """The rows of a run's evaluations."""
    rows = []
    for result in results["scores"]:
        names = dict(part.split("=", 1) for part in result.branch.split(",") if "=" in part)
        figures = {**result.metrics, **(result.facts.get("cost") or {})}
        row = {"case": names.get("case", ""), "method": names.get("method", ""), "metrics": str(result.output)}
        row |= {key: figures[key] for key in COLUMNS if key in figures}
        row |= {"linear": figures["linear_psnr"]} if "linear_psnr" in figures else {}
        rows.append(row)
    return rows
