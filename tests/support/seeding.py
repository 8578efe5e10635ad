"""The seed of the suite: everything a test draws follows from one number, and a failure names it."""

from __future__ import annotations

import os
import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch

#: What the suite runs with unless told otherwise: `--seed N` or INVSOLVE_TEST_SEED=N.
DEFAULT = 0


def chosen(config: pytest.Config) -> int:
    """The seed of this run: an integer >= 0 from `--seed`, else from INVSOLVE_TEST_SEED, else `DEFAULT`."""
    given = config.getoption("--seed")
    text = os.environ.get("INVSOLVE_TEST_SEED", str(DEFAULT)) if given is None else given
    if not text.isdecimal() or int(text) >= 2**32:
        raise pytest.UsageError(f"the seed of the tests is {text!r}: an integer from 0 to 2^32 - 1 was expected")
    return int(text)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device)."""
    random.seed(seed)
    # Not for tests, which make their own generators: scipy and skimage still draw from this one.
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def configure_hypothesis(config: pytest.Config, seed: int) -> None:
    """Let hypothesis draw its examples from the seed alone, however slow this machine is and whatever failed before."""
    if find_spec("hypothesis") is None:
        return
    from hypothesis import HealthCheck, settings

    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(seed)
    settings.register_profile(
        "suite", database=None, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("suite")
