"""Torch's deterministic algorithms for the length of a run, whatever was set before and after."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from invsolve.errors import UserError

#: cuBLAS repeats itself only with a workspace of a fixed size, which it reads from the environment.
_WORKSPACE, _SIZE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# The settings are the process's, not the thread's: the first run that asks sets them, the last one puts them back.
_lock = threading.Lock()
_asking = 0
_before: dict[str, Any] = {}


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block, operations give the same bits each time; afterwards all is as it was.

    Args:
        wanted: False leaves everything as the caller has it.

    Raises:
        UserError: an operation has no deterministic implementation; says which.
    """
    if not wanted:
        yield
        return
    _enter()
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "CuBLAS" in reason and _WORKSPACE in reason:
            raise UserError(
                f"deterministic: cuBLAS was used before without it; start the program with {_WORKSPACE}={_SIZE} set"
            ) from error
        if "deterministic" in reason:
            raise UserError(
                f"deterministic: {reason.split(', but you set')[0].split('. ')[0]}; leave the option out, or take another "
                "device, strategy or operator"
            ) from error
        raise
    finally:
        _leave()


def _enter() -> None:
    global _asking
    with _lock:
        if not _asking:
            _before.update(
                mode=torch.get_deterministic_debug_mode(),
                benchmark=torch.backends.cudnn.benchmark,
                workspace=os.environ.get(_WORKSPACE),
            )
            os.environ.setdefault(_WORKSPACE, _SIZE)
            torch.use_deterministic_algorithms(True)
            # Choosing by a race between algorithms chooses another one now and then.
            torch.backends.cudnn.benchmark = False
        _asking += 1


def _leave() -> None:
    global _asking
    with _lock:
        _asking -= 1
        if _asking:
            return
        torch.set_deterministic_debug_mode(_before["mode"])
        torch.backends.cudnn.benchmark = _before["benchmark"]
        if _before["workspace"] is None:
            os.environ.pop(_WORKSPACE, None)
