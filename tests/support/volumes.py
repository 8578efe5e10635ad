"""A small volume for tests: its scan, a prior, requests, and one uninterrupted run."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from invsolve import jobs, registry
from invsolve.datasets import hdf5
from invsolve.engine.options import Options, declared

ITEMS = 24
PRIOR = '''
"""A Gaussian prior of the test images' size."""
import invsolve
from invsolve import registry


class Small(registry.find("prior", "gaussian-field")):
    """Sixteen pixels a side."""

    examples = ({},)

    def __init__(self):
        super().__init__(size=16, std=0.5)


@invsolve.hookimpl
def invsolve_priors():
    return {"small": Small}
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(PRIOR)
    registry.load_file(path)
    return path


@pytest.fixture
def scan(tmp_path: Path, plugin: Path) -> Path:
    rng = np.random.default_rng(0)
    x = np.cumsum(np.cumsum(rng.normal(size=(ITEMS, 1, 16, 16)), -1), -2).astype("f4") * 0.05
    hdf5.write_images(tmp_path / "truth.h5", x)
    path = tmp_path / "scan.h5"
    jobs.simulate_file(tmp_path / "truth.h5", path, "blur", {"sigma": 1.0}, "gaussian:0.05", seed=0, overwrite=False)
    return path


def request(scan: Path, out: Path, **changes: object) -> jobs.Request:
    settings = {
        "scan": scan,
        "out": out,
        "prior": "small",
        "strategy": "dps-fitted",
        "parameters": {"steps": 8},
    }
    names = {option.name for option in declared()}
    options = Options(**({"samples": 2, "batch_size": 3} | {k: v for k, v in changes.items() if k in names}))  # type: ignore[arg-type]
    changes = {k: v for k, v in changes.items() if k not in names}
    return jobs.Request(options=options, **(settings | changes))  # type: ignore[arg-type]


def samples_of(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        assert file["done"][:].all()
        return file["samples"][:]


@pytest.fixture
def whole(scan: Path, tmp_path: Path) -> np.ndarray:
    """The samples of one uninterrupted run."""
    jobs.reconstruct_file(request(scan, tmp_path / "whole.h5"))
    return samples_of(tmp_path / "whole.h5")
