"""A small pipeline for tests: a file of images, a slow prior, a scan, a reconstruction, its scores."""

from pathlib import Path

import h5py
import numpy as np

SLOW = '''
"""A Gaussian prior that takes its time."""
import time

import invsolve
from invsolve import registry


class Slow(registry.find("prior", "gaussian-field")):
    """Sixteen pixels a side, a few milliseconds an image."""

    examples = ({},)

    def __init__(self):
        super().__init__(size=16, std=0.3)

    def denoise(self, x, sigma):
        time.sleep(0.004 * len(x))
        return super().denoise(x, sigma)


@invsolve.hookimpl
def invsolve_priors():
    return {"slow": Slow}
'''

TEXT = """
plugins = ["./slow.py"]

[variables]
views = 6
steps = 8

[steps.truth]
type = "load"
path = "truth.h5"

[steps.scan]
type = "simulate"
input = "truth"
operator = "ct"
set = {angles = "${views}"}
noise = "gaussian:0.05"

[steps.recon]
type = "reconstruct"
input = "scan"
prior = "slow"
strategy = "dds"
set = {steps = "${steps}"}
samples = 2
snapshot_every = 0.0

[steps.scores]
type = "evaluate"
input = "recon"
to = "out/${branch}.json"
"""


def write(folder: Path, text: str = TEXT, items: int = 2) -> Path:
    """Write the pipeline and what it needs."""
    folder.mkdir(exist_ok=True)
    (folder / "slow.py").write_text(SLOW)
    rng = np.random.default_rng(0)
    x = np.cumsum(np.cumsum(rng.normal(size=(items, 1, 16, 16)), -1), -2).astype("f4") * 0.02
    with h5py.File(folder / "truth.h5", "w") as file:
        file["x"] = x
    path = folder / "p.toml"
    path.write_text(text)
    return path


def samples(folder: Path) -> np.ndarray:
    """The samples of the only reconstruction in a work folder."""
    (path,) = folder.glob("recon-*/recon.h5")
    with h5py.File(path) as file:
        return file["samples"][:]
