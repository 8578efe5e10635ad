"""The only loop: items x samples into batches, steps, counts, callbacks, checks, and finished items to the sink."""

from invsolve.engine.batch import Callback, Outcome, StepInfo, run_batch
from invsolve.engine.run import Run
from invsolve.errors import Interrupted, NonFinite

__all__ = ["Callback", "Interrupted", "NonFinite", "Outcome", "Run", "StepInfo", "run_batch"]
