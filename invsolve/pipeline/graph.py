"""From steps to jobs: the order of the steps, the branches of sweeps, and which job feeds which."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invsolve.errors import UserError, suggestion
from invsolve.pipeline import steps
from invsolve.pipeline.reading import Document, make
from invsolve.pipeline.variables import Variables, axes_of, labels, sweeps_in

#: More jobs than this are a mistake.
_LIMIT = 100_000


@dataclass(frozen=True)
class Axis:
    """One sweep: where it stands, its values, and a readable name for each."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]


#: Axis name -> position of the value, in the order of the axes.
Choice = tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Job:
    """One step for one choice of the sweeps that it depends on.

    Attributes:
        name: of the step.
        branch: readable name of the choice, such as "angles=24,recon.strategy=dps"; empty where nothing is swept.
        step: its parameters, filled in.
        choice: what was chosen.
        inputs: parameter -> the job whose output it takes.
    """

    name: str
    branch: str
    step: steps.Step
    choice: Choice
    inputs: Mapping[str, Job]

    @property
    def title(self) -> str:
        """Step and branch, for messages."""
        return f"{self.name} [{self.branch}]" if self.branch else self.name


def order(inputs: Mapping[str, Mapping[str, str]], where: str) -> list[str]:
    """The steps, each after those that it takes its inputs from, otherwise as written.

    Args:
        inputs: step -> parameter -> the step named there.
        where: the file, for messages.

    Raises:
        UserError: an input names no step, or steps wait for one another in a circle.
    """
    for name, sources in inputs.items():
        for key, source in sources.items():
            if source not in inputs:
                others = [other for other in inputs if other != name]
                raise UserError(
                    f"{where}: step {name!r}: {key} = {source!r} names no step.{suggestion(source, others)} "
                    "A file enters by a step of type load"
                )
    names: list[str] = []
    going: list[str] = []

    def visit(name: str) -> None:
        if name in names:
            return
        if name in going:
            circle = [*going[going.index(name) :], name]
            raise UserError(f"{where}: steps wait for one another in a circle: {' -> '.join(circle)}; break it")
        going.append(name)
        for source in inputs[name].values():
            visit(source)
        going.pop()
        names.append(name)

    for name in inputs:
        visit(name)
    return names


@dataclass(frozen=True)
class Graph:
    """All jobs of a pipeline, each after those that feed it; and the axes that they depend on."""

    axes: tuple[Axis, ...]
    jobs: tuple[Job, ...]

    def points(self) -> list[Choice]:
        """Every combination of the sweeps, the last axis fastest: what `--index` counts.

        Raises:
            UserError: there are more than could be run.
        """
        if (total := math.prod(len(axis.values) for axis in self.axes)) > _LIMIT:
            raise UserError(f"the sweeps have {total} combinations, more than {_LIMIT}; sweep over less")
        names = [axis.name for axis in self.axes]
        picks = itertools.product(*(range(len(axis.values)) for axis in self.axes))
        return [tuple(zip(names, pick, strict=True)) for pick in picks]

    def title(self, choice: Choice) -> str:
        """The readable name of a choice."""
        return branch_name(choice, {axis.name: axis for axis in self.axes})

    def at(self, choice: Choice) -> tuple[Job, ...]:
        """The jobs of one combination, or of all combinations that agree with part of one."""
        positions = dict(choice)
        return tuple(job for job in self.jobs if all(positions.get(axis, k) == k for axis, k in job.choice))

    def named(self, text: str) -> Choice:
        """The choice that a text such as "angles=24" names; axes that it leaves out stay open.

        Raises:
            UserError: there is no such axis or value.
        """
        axes = {axis.name: axis for axis in self.axes}
        pairs: list[tuple[str, int]] = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, equals, label = part.partition("=")
            if not axes:
                raise UserError(f"--only {text}: nothing is swept in this pipeline; leave it out")
            if not equals or name not in axes:
                raise UserError(f"--only {text}: there is no sweep {name!r}.{suggestion(name, axes)} Write NAME=VALUE")
            if label not in axes[name].labels:
                raise UserError(f"--only {text}: {name} has no value {label!r}.{suggestion(label, axes[name].labels)}")
            if name in dict(pairs):
                raise UserError(
                    f"--only {text}: names {name} twice, and takes one value of each; run it once for each value"
                )
            pairs.append((name, axes[name].labels.index(label)))
        return tuple(pairs)


def branch_name(choice: Choice, axes: Mapping[str, Axis]) -> str:
    """Such as "angles=24,strategy=dps"."""
    return ",".join(f"{name}={axes[name].labels[k]}" for name, k in choice)


def expand(document: Document, where: str) -> Graph:
    """Fill in every step for every choice of the sweeps that it, or a step before it, depends on.

    Raises:
        UserError: whatever is wrong with a value, an input or a variable; says which step and key.
    """
    table = document.variables
    every = _axes(document, where)
    inputs = {name: _inputs(document, name, where) for name in document.steps}
    ordered = order(inputs, where)
    own = {name: axes_of(document.steps[name], name, table) for name in ordered}
    used = {axis for names in own.values() for axis in names}
    axes = {axis.name: axis for axis in every if axis.name in used}
    depends: dict[str, list[str]] = {}
    jobs: dict[tuple[str, Choice], Job] = {}
    for name in ordered:
        axis_names = set(own[name]).union(*(depends[source] for source in inputs[name].values()))
        depends[name] = [axis for axis in axes if axis in axis_names]
        sizes = [range(len(axes[axis].values)) for axis in depends[name]]
        total = 1
        for size in sizes:
            total *= len(size)
        if len(jobs) + total > _LIMIT:
            raise UserError(f"{where}: the sweeps make more than {_LIMIT} jobs at step {name!r}; sweep over less")
        for pick in itertools.product(*sizes):
            choice = tuple(zip(depends[name], pick, strict=True))
            feeding = {
                key: jobs[source, tuple((axis, k) for axis, k in choice if axis in depends[source])]
                for key, source in inputs[name].items()
            }
            jobs[name, choice] = _job(document, name, choice, axes, feeding, where)
    return Graph(tuple(axes.values()), tuple(jobs.values()))


def _axes(document: Document, where: str) -> list[Axis]:
    axes: dict[str, Axis] = {}
    places = [*document.variables.items(), *document.steps.items()]
    try:
        for place, value in places:
            for name, values in sweeps_in(value, place):
                if name in axes:
                    raise UserError(f"{name} is swept in [variables] and in a step; rename the variable")
                axes[name] = Axis(name, tuple(values), tuple(labels(name, values)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return list(axes.values())


def _inputs(document: Document, name: str, where: str) -> dict[str, str]:
    """Parameter -> name of the step that it takes, variables filled in; the same in every branch."""
    step = document.steps[name]
    inputs = {}
    for key in steps.TYPES[step["type"]].inputs:
        if (value := step.get(key)) is None:
            continue
        if axes := axes_of(value, f"{name}.{key}", document.variables):
            raise UserError(
                f"{where}: step {name!r}: {key} depends on the sweep {axes[0]}; an input names one step: sweep a parameter "
                "of that step, or write two steps"
            )
        value = Variables(document.variables, {}).fill(value, f"{where}: step {name!r}: {key}")
        if not isinstance(value, str):
            raise UserError(f"{where}: step {name!r}: {key} = {value!r}: expected the name of a step")
        inputs[key] = str(value)
    return inputs


def _job(
    document: Document, name: str, choice: Choice, axes: Mapping[str, Axis], feeding: Mapping[str, Job], where: str
) -> Job:
    raw, branch = document.steps[name], branch_name(choice, axes)
    chosen = {axis: axes[axis].values[k] for axis, k in choice}
    variables = Variables({**document.variables, "branch": branch or "all"}, chosen)
    title = f"{where}: step {name!r}" + (f" [{branch}]" if branch else "")
    try:
        values = {key: variables.fill(value, f"{name}.{key}") for key, value in raw.items() if key != "type"}
    except UserError as error:
        raise UserError(f"{title}: {error}") from None
    values |= {key: job.name for key, job in feeding.items()}
    step = make(steps.TYPES[raw["type"]], values, title)
    return Job(name, branch, step, choice, feeding)
