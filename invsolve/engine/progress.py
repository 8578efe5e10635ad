"""The progress bar: items, step, data residual against its expected value, time left; silent when not a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from invsolve.contracts.sink import Sink
from invsolve.engine.batch import StepInfo
from invsolve.engine.run import Run


class Bar:
    """Hooks itself into a run's callbacks for the duration of a `with` block.

    Args:
        disable: True for never, False for always, None for only where standard error is a terminal.
    """

    def __init__(self, run: Run, sink: Sink, disable: bool | None) -> None:
        self.run, self.disable = run, disable
        todo = sum(not sink.is_done(i) for i in run.items)
        self.chains = todo * run.options.samples
        self.finished = 0.0
        self.shown = 0.0

    def __enter__(self) -> Bar:
        self.bar: Any = tqdm(
            total=self.chains,
            disable=self.disable,
            unit="sample",
            bar_format="{l_bar}{bar}| {n:.1f}/{total} samples [{elapsed}<{remaining}{postfix}]",
            leave=False,
        )
        self.inner = (self.run.callback, self.run.on_batch)
        if not self.bar.disable:
            self.run.callback, self.run.on_batch = self.on_step, self.on_batch
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.callback, self.run.on_batch = self.inner
        self.bar.close()

    def on_step(self, info: StepInfo) -> object:
        now = time.monotonic()
        # Reading the residual waits for the device, so twice a second is enough.
        if now - self.shown > 0.5:
            self.shown = now
            self.bar.n = self.finished + len(info.chains) * info.step / info.steps
            items = sorted({item for item, _ in info.chains})
            span = f"item {items[0]}" if len(items) == 1 else f"items {items[0]}-{items[-1]}"
            text = f"{span}, step {info.step}/{info.steps}"
            if info.residual is not None:
                text += f", residual {float(info.residual.mean()):.2f} x expected"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.refresh()
        return self.inner[0](info) if self.inner[0] is not None else None

    def on_batch(self, chains: Sequence[tuple[int, int]]) -> None:
        self.finished += len(chains)
        self.bar.n = self.finished
        self.bar.refresh()
        if self.inner[1] is not None:
            self.inner[1](chains)
