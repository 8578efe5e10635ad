"""The plan: for each job its key, whether it is there already, and if not, why it has to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from invsolve.errors import UserError, suggestion
from invsolve.pipeline import steps
from invsolve.pipeline.files import Product
from invsolve.pipeline.graph import Job
from invsolve.pipeline.keys import ingredients, key_of, why
from invsolve.pipeline.store import Store


@dataclass(frozen=True, eq=False)
class Planned:
    """One job of a plan.

    Attributes:
        job: which.
        step: its parameters, files as absolute paths.
        key: hash of all that the output depends on.
        ingredients: what was hashed.
        folder: where the output is, or will be.
        state: "cached" (nothing to do), "run", or "resume" (an interrupted run goes on).
        reason: why it is not cached.
        sources: parameter -> the planned job that feeds it.
    """

    job: Job
    step: steps.Step
    key: str
    ingredients: Mapping[str, Any]
    folder: Path
    state: Literal["cached", "run", "resume"]
    reason: str
    sources: Mapping[str, Planned]

    @property
    def output(self) -> Path | None:
        """The file that the job gives; None for a loaded one, which stays where it is."""
        return self.folder / self.step.output_name if self.step.output_name else None

    @property
    def product(self) -> Product:
        """What later jobs read."""
        if isinstance(self.step, steps.Load):
            return Product(Path(self.step.path), self.step.layout, self.step.read)
        return Product(self.folder / self.step.output_name)

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.job.name,
            "branch": self.job.branch,
            "type": self.step.type,
            "state": self.state,
            "reason": self.reason,
            "key": self.key,
            "output": str(self.product.path),
        }


@dataclass(frozen=True)
class Plan:
    """All jobs in the order in which they run; prints as a table."""

    jobs: tuple[Planned, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """One object per job, as in the event "plan"."""
        return [planned.as_json() for planned in self.jobs]

    def __str__(self) -> str:
        header = ("step", "branch", "state", "why", "output")
        rows = [header, *(self._row(planned) for planned in self.jobs)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        counts = Counter(planned.state for planned in self.jobs)
        summary = [f"{counts['cached']} cached", f"{counts['run']} to run"]
        if counts["resume"]:
            summary.append(f"{counts['resume']} to go on with")
        return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:], "", ", ".join(summary)])

    @staticmethod
    def _row(planned: Planned) -> tuple[str, ...]:
        path = planned.product.path
        shown = f"{path.parent.name}/{path.name}" if planned.output is not None else path.name
        return planned.job.name, planned.job.branch or "-", planned.state, planned.reason or "-", shown


def make_plan(
    jobs: Sequence[Job],
    located: Mapping[Job, steps.Step],
    store: Store,
    plugins: tuple[Path, ...],
    force: Collection[str] = (),
) -> Plan:
    """Decide what has to run.

    Args:
        jobs: each after those that feed it.
        located: their steps, files as absolute paths.
        store: of what was computed before.
        plugins: plugin files.
        force: steps to run again, and all that follow from them.

    Raises:
        UserError: `force` names no step, or a file cannot be read.
    """
    names = {job.name for job in jobs}
    for name in force:
        if name not in names:
            raise UserError(f"--force {name}: there is no such step.{suggestion(name, names)}")
    planned: dict[Job, Planned] = {}
    for job in jobs:
        sources = {key: planned[source] for key, source in job.inputs.items()}
        planned[job] = _plan_job(job, located[job], sources, store, plugins, force)
    return Plan(tuple(planned.values()))


def _plan_job(
    job: Job,
    step: steps.Step,
    sources: Mapping[str, Planned],
    store: Store,
    plugins: tuple[Path, ...],
    force: Collection[str],
) -> Planned:
    made_of = ingredients(step, {key: source.key for key, source in sources.items()}, plugins, store.hashes)
    key = key_of(made_of)
    folder = store.folder(key, job.title.replace(" [", "-").rstrip("]"))
    state: Literal["cached", "run", "resume"] = "run"
    again = [source.job.name for source in sources.values() if source.reason.startswith("forced")]
    if job.name in force:
        reason = "forced"
    elif again:
        reason = f"forced with {again[0]}"
    elif store.record(folder, key, step.output_name):
        state, reason = "cached", ""
    elif step.resumes and store.begun(folder, step.output_name):
        state, reason = "resume", "was interrupted"
    elif store.damaged(folder, key):
        reason = "its output is gone or was changed"
    else:
        last = store.last(job.name, job.branch)
        reason = (why(last.get("ingredients", {}), made_of) if last else "") or "new"
    return Planned(job, step, key, made_of, folder, state, reason, sources)
