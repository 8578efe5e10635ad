"""The file that lets a run go on in the middle of a batch: written now and then beside the partial result, removed with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import invsolve
from invsolve.datasets.hdf5 import replace
from invsolve.engine.snapshot import Sample, Snapshot
from invsolve.errors import UserError

#: Writing takes at most this part of the time.
_SHARE = 0.05


class SnapshotFile:
    """A `Keeper` on `<output>.partial.state`; tensors and numbers only, loaded without running code from it.

    Args:
        output: the result's path.
        config_sha256: of the run; a file of another configuration or version is not gone on from.
        every: seconds between two saves, more where saving is slow.
        say: told what is gone on from.
    """

    def __init__(
        self, output: Path, config_sha256: str, every: float = 60.0, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.path = Path(f"{output}.partial.state")
        self.config, self.every, self.say = config_sha256, every, say
        self._last, self._cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self._last > max(self.every, self._cost / _SHARE)

    def save(self, snapshot: Snapshot, waiting: Mapping[int, Sequence[Sample]]) -> None:
        """Replace the file.

        Raises:
            UserError: the disk is full or the folder not writable.
        """
        began = time.monotonic()
        content = {
            "config_sha256": self.config,
            "version": invsolve.__version__,
            "snapshot": {**vars(snapshot), "chains": [tuple(chain) for chain in snapshot.chains]},
            "waiting": {item: list(samples) for item, samples in waiting.items()},
        }
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            torch.save(content, temporary)
            replace(temporary, self.path)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: cannot be written ({' '.join(str(error).split())[:200]}); check space and permissions"
            ) from None
        self._last = time.monotonic()
        self._cost = self._last - began

    def restore(self) -> tuple[Snapshot | None, dict[int, list[Sample]]]:
        """What was saved last; nothing where the file is absent, damaged, or of another configuration or version."""
        content: dict[str, Any] = {}
        with suppress(Exception):
            content = torch.load(self.path, weights_only=True, map_location="cpu")
        if content.get("config_sha256") != self.config or content.get("version") != invsolve.__version__:
            return None, {}
        snapshot = Snapshot(**content["snapshot"])
        items = sorted({item for item, _ in snapshot.chains})
        span = f"item {items[0]}" if len(items) == 1 else f"items {items[0]}-{items[-1]}"
        self.say(f"continuing {span} after step {snapshot.step}")
        return snapshot, content["waiting"]

    def remove(self) -> None:
        """Remove the file and what a kill may have left beside it."""
        for file in (self.path, self.path.with_name(f"{self.path.name}.tmp")):
            file.unlink(missing_ok=True)
