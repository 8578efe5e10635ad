"""Store the Gaussian of their training images in the headers of prior files that were trained before it was stored at once.

    python scripts/training_data.py ../shared/data WORK
    python scripts/gaussian_start.py WORK plugins/priors/weights/*.safetensors

WORK holds the training file that each header names; weights are left as they are. Printed is from which noise level on the
network is no better than the Gaussian on the held-out images. The file leaves it off: `gaussian_above` turns it on.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import invsolve
from invsolve.contracts.scale import Scale
from invsolve.datasets.hdf5 import replace
from invsolve.networks.gaussian_start import GaussianStart
from invsolve.training import data
from invsolve.training.batches import Batches, held_out
from invsolve.training.early_phase import early_phase
from invsolve.training.error_curve import MEASURED
from invsolve.training.job import prepared
from invsolve.training.settings import make_settings
from invsolve.training.split import divide


def measured(path: Path, folder: Path) -> GaussianStart:
    """Of the prior in a file, whose header says what it was trained on and how."""
    prior: Any = invsolve.load_prior(path)
    header = prior.header
    settings = make_settings({k: v for k, v in header["training"]["settings"].items() if v is not None})
    images = data.Images(folder / header["training"]["data"]["file"], settings)
    split = divide(images, images.select(settings.where), settings)
    scale = Scale.from_range(*header["data_range"])
    batches = Batches(images, split.train, settings, scale)
    prepare = partial(prepared, scale=scale, settings=settings)
    seen = held_out(images, data.spread(split.validation, MEASURED).tolist(), batches.size, prepare)
    return early_phase(batches, prepare, seen, header["error_curve"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("priors", type=Path, nargs="+")
    arguments = parser.parse_args()
    for path in arguments.priors:
        prior: Any = invsolve.load_prior(path)
        prior.gaussian = measured(path, arguments.data)
        level, prior.gaussian.above = prior.gaussian.above, None
        temporary = path.with_name(f".{path.stem}.tmp.safetensors")
        prior.save(temporary)
        replace(temporary, path)
        print(f"{path}: the network is no better above {level}", flush=True)
