"""What files cost: a volume from HDF5 to HDF5 over the same batches from and to memory; red-diff with ct-128 at 128 x 128.

    python benchmarks/io_overhead.py [--slices 24] [--steps 6] [--rounds 5] [--device cuda]

Both are timed in turns in one process; the ratio of each pair, and the median of the ratios. The bar is 1.05.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import invsolve
from invsolve import api, engine, jobs
from invsolve.api.provenance import provenance
from invsolve.datasets import hdf5
from invsolve.engine.batching import batches
from invsolve.files import opening
from invsolve.numerics.random import ChainRandom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    size = arguments.size
    operator = invsolve.operator("ct", image_size=size, angles=30)
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 1, size, size, generator=generator)
    y = operator(truth).expand(arguments.slices, -1, -1) + torch.randn(
        arguments.slices, *operator(truth).shape[1:], generator=generator
    )
    prior = api.load_prior("ct-128")
    with tempfile.TemporaryDirectory() as folder:
        scan, out = Path(folder) / "scan.h5", Path(folder) / "recon.h5"
        hdf5.write_scan(scan, y, operator, invsolve.Gaussian(1.0))
        chosen = invsolve.strategy("red-diff", steps=arguments.steps)

        def plan() -> engine.Run:
            measurement = opening.open_measurement(scan)
            return api.plan(
                measurement, prior, chosen, engine.Options(batch_size=arguments.batch_size, device=arguments.device)
            )

        def with_files() -> float:
            out.unlink(missing_ok=True)
            run = plan()
            began = time.perf_counter()
            jobs.run_into_file(run, out, provenance(run), False, lambda line: None)
            return time.perf_counter() - began

        def without() -> float:
            run = plan()
            run.measurement.y = y
            chains = [(item, 0) for item in range(arguments.slices)]
            began = time.perf_counter()
            for batch in batches(chains, lambda: arguments.batch_size, 1):
                outcome = engine.run_batch(run.problem(batch), chosen, ChainRandom(0, batch))
                outcome.images.cpu()
            return time.perf_counter() - began

        with_files()
        without()
        pairs = [(with_files(), without()) for _ in range(arguments.rounds)]
    ratios = [a / b for a, b in pairs]
    print(
        f"{arguments.slices} slices of {size} x {size}, {arguments.steps} steps, batches of {arguments.batch_size}, "
        f"{arguments.device}, {torch.get_num_threads()} threads: {statistics.median(b for _, b in pairs):.2f} s without files; "
        f"with / without: median {statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
