"""A pipeline: steps, read from a TOML file or made in Python; its plan, and its run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invsolve import registry
from invsolve.errors import UserError
from invsolve.pipeline import reading, steps
from invsolve.pipeline.checking import check_jobs
from invsolve.pipeline.events import Listener
from invsolve.pipeline.files import inside
from invsolve.pipeline.graph import Graph, Job, expand
from invsolve.pipeline.planning import Plan, make_plan
from invsolve.pipeline.reading import Document
from invsolve.pipeline.running import Result, Setting, run_plan
from invsolve.pipeline.stopping import Stop
from invsolve.pipeline.store import Store
from invsolve.pipeline.variables import Variables
from invsolve.training.parallel import started_together


class Results(Sequence[Result]):
    """What came of the jobs of a run, in their order; `results["scores"]` is a list of those of one step."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = tuple(results)

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            return [result for result in self.results if result.step == which]
        return self.results[which]


class Pipeline:
    """Steps that turn files into files, each run once for what it depends on.

    Everything is checked when the pipeline is made: names, types, parameters of plugins, files, inputs.

    Args:
        steps: name -> step, an object of `invsolve.pipeline` such as `Simulate(...)`, or a table as in a file.
        variables: values that steps refer to as "${name}".
        work: folder for everything that is computed.
        plugins: Python files with plugins of your own.
        name: what it is called in events.
        base: the folder that paths are seen from; default the working directory.

    Raises:
        UserError: something is wrong; says which step and key, what was expected, and how to mend it.

    Attributes:
        graph: the jobs, and the sweeps that they depend on.
    """

    def __init__(
        self,
        steps: Mapping[str, steps.Step | Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        work: str | Path = "",
        plugins: Sequence[str | Path] = (),
        name: str = "pipeline",
        base: str | Path | None = None,
    ) -> None:
        raw = {
            "name": name,
            "work": str(work),
            "plugins": [str(file) for file in plugins],
            "variables": dict(variables or {}),
            "steps": {key: _table(key, step) for key, step in steps.items()},
        }
        folder = Path.cwd() if base is None else Path(base)
        self._prepare(reading.check(raw, name, name), folder, name, trust=True)

    @classmethod
    def load(
        cls,
        path: str | Path,
        changes: Mapping[str, Any] | None = None,
        plugins: Sequence[str | Path] = (),
        trust: bool = False,
    ) -> Pipeline:
        """Read a pipeline from a TOML file. One that is not trusted runs no code and writes nothing outside its folder.

        Args:
            path: the file; paths in it are seen from its folder.
            changes: dotted name -> value, as for `--set`: {"variables.angles": 12, "recon.samples": 4}.
            plugins: Python files with plugins, beside those that the file names; seen from the working directory.
                One that the file names too is trusted by being given here.
            trust: run the plugin files that the pipeline names, and let it write outside of its folder and use
                schedulers: for files of your own.

        Raises:
            UserError: something is wrong; says which step and key, what was expected, and how to mend it.
        """
        file = Path(path)
        pipeline = cls.__new__(cls)
        pipeline._prepare(reading.read(file, changes), file.parent, str(path), plugins, trust, [file])
        return pipeline

    def _prepare(
        self,
        document: Document,
        base: Path,
        where: str,
        plugins: Sequence[str | Path] = (),
        trust: bool = False,
        read: Sequence[Path] = (),
    ) -> None:
        self.document, self.base, self.where = document, base.absolute(), where
        filled = Variables(document.variables, {})
        named = [(self.base / str(filled.fill(file, f"{where}: plugins"))).resolve() for file in document.plugins]
        files = [Path(file).resolve() for file in plugins]
        unknown = [str(file) for file in named if file not in files]
        if unknown and not trust:
            raise UserError(
                f"{where}: would run code: plugins = {', '.join(unknown)}; if you trust it give --trust "
                "(Pipeline.load(..., trust=True)), or name what you have read with --plugin FILE"
            )
        self.plugins = tuple(dict.fromkeys([*named, *files]))
        work = (
            self.base / Path(str(filled.fill(document.work or f"{document.name}_runs", f"{where}: work"))).expanduser()
        )
        if not trust and not inside(work, self.base):
            raise UserError(
                f"{where}: work = {work} is outside of the pipeline's folder; if you trust the pipeline give --trust "
                "(Pipeline.load(..., trust=True))"
            )
        for file in self.plugins:
            registry.load_file(file)
        self.store = Store(work)
        self.graph: Graph = expand(document, where)
        self._located = check_jobs(self.graph.jobs, self.base, where, trust, [*read, *self.plugins])

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def points(self) -> list[str]:
        """The readable name of each combination of the sweeps; [""] where nothing is swept."""
        return [self.graph.title(choice) for choice in self.graph.points()]

    def jobs(self, only: str | Sequence[str] | None = None, index: int | None = None) -> tuple[Job, ...]:
        """The jobs of the whole pipeline, or of one combination of the sweeps.

        Args:
            only: such as "angles=24,recon.strategy=dps"; sweeps that it leaves out stay whole. Several: what any of them names.
            index: position in `points`.

        Raises:
            UserError: there is no such combination.
        """
        parts = [only] if isinstance(only, str) else list(only or ())
        if parts and index is not None:
            raise UserError("--only and --index both choose a combination; give one")
        if parts:
            chosen = {job for part in parts for job in self.graph.at(self.graph.named(part))}
            return tuple(job for job in self.graph.jobs if job in chosen)
        if index is None:
            return self.graph.jobs
        points = self.graph.points()
        if not 0 <= index < len(points):
            raise UserError(f"--index {index}: {self.where} has {len(points)} combinations, 0 to {len(points) - 1}")
        return self.graph.at(points[index])

    def plan(
        self, only: str | Sequence[str] | None = None, index: int | None = None, force: Collection[str] = ()
    ) -> Plan:
        """What would run, and why; computes and writes nothing but hashes of files.

        Args:
            only, index: as for `jobs`.
            force: steps to run again, and all that follow from them.

        Raises:
            UserError: there is no such combination or step, or a file cannot be read.
        """
        return make_plan(self.jobs(only, index), self._located, self.store, self.plugins, force)

    def run(
        self,
        plan: Plan | None = None,
        *,
        keep_going: bool = False,
        overwrite: bool = False,
        on_event: Listener | None = None,
        stop: Stop | None = None,
    ) -> Results:
        """Run a plan; what is there already is not run again.

        Args:
            plan: default the whole pipeline's.
            keep_going: after a failure go on with what does not depend on it.
            overwrite: let `to` replace files that this pipeline did not write.
            on_event: told of each event, a dictionary with `time`, `event` and what belongs to it.
            stop: its `request` ends the run at the next safe point.

        Raises:
            UserError: started by torchrun, whose processes would wait for one another, or `to` would replace a file.
            StepFailed: a step failed; what was finished is kept.
            Stopped: asked to stop; the same call goes on.
        """
        if started_together():
            raise UserError(
                f"{self.where}: torchrun starts several processes, a pipeline is run by one: use workers = N"
            )
        plan = self.plan() if plan is None else plan
        setting = Setting(
            self.name, self.base, self.store, self.plugins, on_event or (lambda what: None), stop or Stop(), overwrite
        )
        return Results(run_plan(plan, setting, keep_going))

    def prune(self) -> list[Path]:
        """Remove from the work folder what no job of this pipeline, as it is now, uses; returns the folders."""
        return self.store.prune([planned.key for planned in self.plan().jobs])


def _table(name: str, step: steps.Step | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(step, steps.Step):
        return {"type": step.type, **{key: getattr(step, key) for key in step.model_fields_set}}
    if isinstance(step, Mapping):
        return dict(step)
    raise UserError(f"step {name!r}: expected a step of invsolve.pipeline or a table, got {type(step).__name__}")
