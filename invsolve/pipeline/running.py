"""Running a plan: job after job, each once, what is there already left alone, events on the way."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import invsolve
from invsolve.errors import Interrupted, NonFinite, UserError
from invsolve.pipeline.actions import Context, perform
from invsolve.pipeline.checking import target
from invsolve.pipeline.events import Listener, event
from invsolve.pipeline.files import Product
from invsolve.pipeline.keys import ingredients, key_of
from invsolve.pipeline.planning import Plan, Planned
from invsolve.pipeline.publishing import Published, sha256_of
from invsolve.pipeline.steps import Reconstruct
from invsolve.pipeline.stopping import Stop, Stopped
from invsolve.pipeline.store import Store


class StepFailed(Exception):
    """A step of a pipeline failed; says which, and why. What was finished is kept.

    Attributes:
        results: of the jobs that were done.
    """

    def __init__(self, text: str, results: Sequence[Result]) -> None:
        super().__init__(text)
        self.results = tuple(results)


@dataclass(frozen=True)
class Result:
    """What came of one job.

    Attributes:
        step, branch: which job.
        key: of the job.
        cached: whether it was there already.
        output: the file it gives.
        copy: where a copy of it was put, if that was asked for.
        seconds: that it took; of a cached one, when it was made.
        facts: what the step said about itself.
    """

    step: str
    branch: str
    key: str
    cached: bool
    output: Path
    copy: Path | None
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Of an evaluate step: the mean of each metric; empty for others."""
        return dict(self.facts.get("metrics") or {})

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "branch": self.branch,
            "key": self.key,
            "cached": self.cached,
            "output": str(self.output),
            "copy": None if self.copy is None else str(self.copy),
            "seconds": self.seconds,
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class Setting:
    """What every job of a run is run with.

    Attributes:
        name: of the pipeline.
        base: the folder that `to` is seen from.
        store: where outputs are kept.
        plugins: plugin files.
        tell: told of every event.
        stop: says when to stop.
        overwrite: whether `to` may replace files that the pipeline did not write.
    """

    name: str
    base: Path
    store: Store
    plugins: tuple[Path, ...]
    tell: Listener
    stop: Stop
    overwrite: bool = False


def run_plan(plan: Plan, setting: Setting, keep_going: bool = False) -> list[Result]:
    """Run what is not there yet.

    Args:
        plan: the jobs.
        setting: what they are run with.
        keep_going: after a failure go on with the jobs that do not depend on it.

    Raises:
        UserError: `to` would replace a file that the pipeline did not write; nothing was run.
        StepFailed: a step failed.
        Stopped: asked to stop; the running step is kept as far as it got, where it can go on.
    """
    published = Published(setting.store, setting.overwrite)
    for planned in plan.jobs:
        if (copy := target(planned.job, setting.base)) is not None:
            record = setting.store.record(planned.folder, planned.key, planned.step.output_name)
            published.check(copy, sha256_of(record))
    results: list[Result] = []
    failures: list[str] = []
    lost: set[Planned] = set()
    began = time.perf_counter()
    say = setting.tell
    say(event("plan", pipeline=setting.name, jobs=plan.as_json()))

    def end(state: str) -> None:
        seconds = round(time.perf_counter() - began, 3)
        say(event("end", pipeline=setting.name, state=state, done=len(results), failed=len(failures), seconds=seconds))

    for planned in plan.jobs:
        if any(source in lost for source in planned.sources.values()):
            lost.add(planned)
            say(event("skipped", **_about(planned), error="a step before it failed"))
            continue
        try:
            if setting.stop.asked():
                raise Stopped("stopped")
            results.append(_run(planned, setting))
        except (UserError, NonFinite, OSError, MemoryError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"step {planned.job.title!r}: {text}")
            say(event("failed", **_about(planned), error=text))
        except (Interrupted, KeyboardInterrupt) as error:
            say(event("stopped", **_about(planned), error=" ".join(str(error).split())))
            end("stopped")
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Stopped(f"step {planned.job.title!r}: {error}") from None
        except Exception as error:
            traceback.print_exc()
            failures.append(
                f"step {planned.job.title!r}: this is a fault of invsolve or of a plugin: {type(error).__name__}: {error}"
            )
            say(event("failed", **_about(planned), error=f"{type(error).__name__}: {error}"))
        else:
            continue
        lost.add(planned)
        if not keep_going:
            break
    end("failed" if failures else "done")
    if failures:
        more = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
        raise StepFailed(f"{failures[0]}{more}", results)
    return results


def _about(planned: Planned) -> dict[str, Any]:
    return {"step": planned.job.name, "branch": planned.job.branch, "key": planned.key}


def _run(planned: Planned, setting: Setting) -> Result:
    store, told = setting.store, False

    def waiting() -> None:
        nonlocal told
        if setting.stop.asked():
            raise Stopped("stopped while waiting for another run")
        if not told:
            told = True
            setting.tell(event("waiting", **_about(planned), text="another run is at this step"))

    forced = planned.reason.startswith("forced")
    with store.lock(planned.key, waiting):
        # Another run may have named the folder, or finished the job, since the plan was made.
        record = {} if forced else store.record(planned.folder, planned.key, planned.step.output_name)
        if record:
            result = _result(planned, record, cached=True, setting=setting)
            setting.tell(event("cached", **_about(planned), **_outcome(result)))
            return result
        if forced or store.damaged(planned.folder, planned.key):
            store.forget(planned.folder)
        setting.tell(event("start", **_about(planned), reason=planned.reason, output=str(planned.product.path)))
        record = _perform(planned, setting)
    result = _result(planned, record, cached=False, setting=setting)
    setting.tell(event("done", **_about(planned), **_outcome(result)))
    return result


def _perform(planned: Planned, setting: Setting) -> dict[str, Any]:
    step, store = planned.step, setting.store
    out = store.stage(planned.folder, step.output_name, step.resumes)
    branch = f" --only {planned.job.branch}" if planned.job.branch else ""
    context = Context(
        inputs={key: source.product for key, source in planned.sources.items()},
        measured=_measured(planned),
        out=out,
        say=lambda line: setting.tell(event("note", **_about(planned), text=line)),
        should_stop=setting.stop.asked,
        plugins=setting.plugins,
        command=f"invsolve run {setting.name}{branch} (step {planned.job.name})",
    )
    began = time.perf_counter()
    if step.resumes and out.exists():
        # A result has its name only when it is complete: the run was killed between that and its record.
        facts: dict[str, Any] = {"recovered": True}
    else:
        # A step that resumes stops after a step of its own; what the others were at is written anew.
        with nullcontext() if step.resumes else setting.stop.anywhere():
            facts = perform(step, context)
    if any(_changed(part, setting) for part in (planned, *planned.sources.values())):
        store.forget(planned.folder)
        raise UserError("a file that it reads was changed meanwhile; run the same command again")
    record = {
        "key": planned.key,
        "step": planned.job.name,
        "branch": planned.job.branch,
        "ingredients": dict(planned.ingredients),
        "facts": facts,
        "seconds": round(time.perf_counter() - began, 3),
        "invsolve_version": invsolve.__version__,
    }
    return store.finish(planned.folder, step.output_name, record)


def _measured(planned: Planned) -> Product | None:
    source = planned.sources.get("input")
    if source is None or not isinstance(source.step, Reconstruct):
        return None
    return source.sources["input"].product


def _changed(planned: Planned, setting: Setting) -> bool:
    """Whether files from outside are no longer those that the key was made of."""
    sources = {key: source.key for key, source in planned.sources.items()}
    return key_of(ingredients(planned.step, sources, setting.plugins, setting.store.hashes)) != planned.key


def _result(planned: Planned, record: dict[str, Any], cached: bool, setting: Setting) -> Result:
    copy = target(planned.job, setting.base)
    if copy is not None and planned.output is not None:
        Published(setting.store, setting.overwrite).put(planned.output, copy, sha256_of(record))
    return Result(
        planned.job.name,
        planned.job.branch,
        planned.key,
        cached,
        planned.product.path,
        copy,
        float(record.get("seconds", 0.0)),
        dict(record.get("facts") or {}),
    )


def _outcome(result: Result) -> dict[str, Any]:
    about = {"seconds": result.seconds, "output": str(result.output), "metrics": result.metrics}
    return about | ({} if result.copy is None else {"copy": str(result.copy)})
