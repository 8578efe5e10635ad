"""The only loop: items x samples into batches, steps, counts, callbacks, checks, and finished items to the sink.

Names are loaded on first use: the options, which the command line's help reads, need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invsolve.engine.batch import Callback as Callback
    from invsolve.engine.batch import Outcome as Outcome
    from invsolve.engine.batch import StepInfo as StepInfo
    from invsolve.engine.batch import run_batch as run_batch
    from invsolve.engine.options import Options as Options
    from invsolve.engine.run import Run as Run
    from invsolve.errors import Interrupted as Interrupted
    from invsolve.errors import NonFinite as NonFinite

_HOME = {
    "Callback": "invsolve.engine.batch",
    "Outcome": "invsolve.engine.batch",
    "StepInfo": "invsolve.engine.batch",
    "run_batch": "invsolve.engine.batch",
    "Options": "invsolve.engine.options",
    "Run": "invsolve.engine.run",
    "Interrupted": "invsolve.errors",
    "NonFinite": "invsolve.errors",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'invsolve.engine' has no attribute {name!r}")
