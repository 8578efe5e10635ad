"""Pipelines: steps from file to file, scripted in TOML or Python, each run once for what it depends on."""

from invsolve.pipeline.pipeline import Pipeline, Results
from invsolve.pipeline.planning import Plan, Planned
from invsolve.pipeline.running import Result, StepFailed
from invsolve.pipeline.schema import schema
from invsolve.pipeline.steps import (
    Evaluate,
    Export,
    Load,
    Preprocess,
    Reconstruct,
    Report,
    Sample,
    Simulate,
    Step,
    sweep,
)
from invsolve.pipeline.stopping import Stop, Stopped

__all__ = [
    "Evaluate",
    "Export",
    "Load",
    "Pipeline",
    "Plan",
    "Planned",
    "Preprocess",
    "Reconstruct",
    "Report",
    "Result",
    "Results",
    "Sample",
    "Simulate",
    "Step",
    "StepFailed",
    "Stop",
    "Stopped",
    "schema",
    "sweep",
]
