"""Work on the CPU in threads that torch splits no further, and that sleep while they wait for one another.

Torch's own threads meet after every operation, and spin until the last has come. On a machine that others use too, the last
one waits for its turn, and a product of 3 ms has been seen to take 150. Here a thread does a whole share of the work; they
meet once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def apart(shares: Sequence[Callable[[], T]]) -> list[T]:
    """What each share returns, in order; as many at once as torch has threads here (`torch.get_num_threads`).

    Every share runs as if torch had one thread, and without autograd, in the caller's inference mode. With one thread here, as
    inside a share, they run one after the other in the caller's.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [share() for share in shares]
    inference = torch.is_inference_mode_enabled()

    def run(share: Callable[[], T]) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(False):
            return share()

    return list(_pool(threads).map(run, shares))


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            pool = ThreadPoolExecutor(threads, "invsolve", _alone)
            ready = threading.Barrier(threads + 1)
            for _ in range(threads):
                pool.submit(ready.wait)
            ready.wait()
            # Torch also keeps the number for threads that are yet to come; those are not ours.
            torch.set_num_threads(threads)
            _pools[threads] = pool
        return _pools[threads]


def _alone() -> None:
    # A thread takes the number of all others when it first asks; what it sets before that is lost.
    torch.get_num_threads()
    torch.set_num_threads(1)


# A forked child has none of its parent's threads. Windows does not fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)
