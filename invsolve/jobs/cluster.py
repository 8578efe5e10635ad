"""Handing tasks to Dask: a scheduler that is there already, or workers of our own on this machine. Needs invsolve[cluster]."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from invsolve.errors import UserError

#: Seconds to wait for a scheduler, and for its first worker.
_PATIENCE = 60.0
#: Times a task is given to another worker because its own died; Dask's `allowed-failures`.
_RETRIES = 3


class Stopped(Exception):
    """Asked to stop before all tasks were done."""


class WorkersLost(Exception):
    """One task took several workers with it."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


@dataclass
class Pool:
    """Workers that run tasks.

    Attributes:
        workers: how many there are.
        local: whether they are ours, on this machine, and end with the pool.
    """

    client: Any
    workers: int
    local: bool

    def run(
        self,
        function: Callable[..., object],
        tasks: Sequence[tuple[Any, ...]],
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Call `function(*task)` on the workers; yields each task when it is done. A lost worker's task goes to another.

        Raises:
            Stopped: `should_stop` said so.
            WorkersLost: a task outlived no worker that it was given to.
            Exception: whatever a task raised; the others are cancelled.
        """
        from distributed import KilledWorker, wait

        waiting = {self.client.submit(function, *task, pure=False): task for task in tasks}
        try:
            while waiting:
                if should_stop is not None and should_stop():
                    raise Stopped
                try:
                    finished = wait(list(waiting), timeout=0.3, return_when="FIRST_COMPLETED").done
                except TimeoutError:
                    continue
                for future in finished:
                    task = waiting.pop(future)
                    error = future.exception()
                    if isinstance(error, KilledWorker):
                        raise WorkersLost(_RETRIES + 1)
                    if error is not None:
                        raise error
                    yield task
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def connect(workers: int | None, scheduler: str | None) -> Iterator[Pool]:
    """Workers for the time of the block.

    Args:
        workers: start so many processes on this machine; each runs one task at a time.
        scheduler: address of a Dask scheduler whose workers to use instead.

    Raises:
        UserError: Dask is not installed, both or a silly number is given, no scheduler answers, or it has no worker.

    Whoever reaches a scheduler runs code with the rights of its owner, and other users of a machine reach its loopback.
    So our own workers speak TLS, each side with a certificate that is made here and known to nobody else.
    """
    if workers is not None and scheduler is not None:
        raise UserError(
            "--workers starts workers on this machine, --scheduler uses those of a cluster: give one of them"
        )
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.security import Security

        security = Security.temporary() if scheduler is None else None
    except ImportError:
        raise UserError(
            "--workers and --scheduler need Dask: pip install 'invsolve[cluster]' (or pip install distributed cryptography)"
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        # Workers start as fast as this process did, so on a busy machine slowly.
        stack.enter_context(
            dask.config.set(
                {"distributed.scheduler.allowed-failures": _RETRIES, "distributed.comm.timeouts.connect": _PATIENCE}
            )
        )
        if scheduler is None:
            # Dask serves pages about a run to whoever asks, also without its dashboard: none is left.
            stack.enter_context(
                dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []})
            )
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=None,
                    # Any free port: without an address Dask insists on 8787, and warns where that is taken.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=logging.CRITICAL,
                    security=security,
                )
            )
            client = stack.enter_context(Client(cluster))
            client.register_plugin(_left_to_the_command())
        else:
            client = stack.enter_context(_client(scheduler))
        yield Pool(client, len(client.nthreads()) or 1, scheduler is None)


def _left_to_the_command() -> Any:
    """A plugin for our own workers: Ctrl-C reaches them too, but it is the command that tells them to stop."""
    from distributed import WorkerPlugin

    class LeftToTheCommand(WorkerPlugin):
        name = "invsolve-signals"

        def setup(self, worker: Any) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return LeftToTheCommand()


def _client(scheduler: str) -> Any:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=_PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers ({' '.join(str(error).split())[:200]}); start one with "
            "dask scheduler, and give the address it prints, such as tcp://10.0.0.1:8786"
        ) from None
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError:
        client.close()
        raise UserError(
            f"--scheduler {scheduler}: has no worker after {_PATIENCE:.0f} s; start some with dask worker {scheduler} "
            "--nthreads 1"
        ) from None
    return client


def worker_index() -> int | None:
    """The number of the worker that this runs in, where workers are numbered (those of `connect` are); else None."""
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:
        return None
    return int(name) if str(name).isdigit() else None
