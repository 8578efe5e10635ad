"""The verdicts of self-tests, kept by the hash of what was tested: a checkpoint is tested once on a machine, not for each run."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from invsolve.networks import selftest
from invsolve.networks.network_prior import NetworkPrior


def folder() -> Path:
    """Where verdicts are kept: `invsolve/self-tests` in the user's cache, $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "invsolve" / "self-tests"


def verdict(prior: NetworkPrior, name: str) -> tuple[bool, str]:
    """Whether a prior passes its self-test, and the finding in one line: as it was, or tested now, with a progress bar.

    Args:
        prior: tested where weights, reading or the test itself are others than before.
        name: for the bar.
    """
    key = hashlib.sha256(f"{prior.fingerprint()} {inspect.getsource(selftest)}".encode()).hexdigest()
    file = folder() / f"{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        return bool(kept["ok"]), str(kept["text"])
    with tqdm(desc=f"self-test of {name[-60:]}", unit=" calls", disable=None, leave=False) as bar:
        report = selftest.self_test(prior, told=lambda: bool(bar.update()))
    # A cache that cannot be written costs the next run its test, and nothing else.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"ok": bool(report), "text": str(report)}), encoding="utf-8")
        fresh.replace(file)
    return bool(report), str(report)
