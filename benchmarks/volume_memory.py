"""Peak memory of a volume from HDF5 to HDF5: 256 and 512 slices of 256 x 256, DPS with the Gaussian prior.

    python benchmarks/volume_memory.py [--slices 256 512] [--size 256] [--steps 4] [--batch-size 8]

Each run, and an interpreter that only imports invsolve's engine, is a process of its own; the peak is VmHWM of
/proc/self/status. The bar is 2 GiB above the idle interpreter, and the same peak for both volumes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

IDLE = "import invsolve.jobs, invsolve.api, invsolve.shards"
RUN = """
import sys
from pathlib import Path
from invsolve import jobs
from invsolve.cli.app import run
scan, out, steps, batch = sys.argv[1:]
code = run(["reconstruct", scan, "-o", out, "--prior", "field", "--plugin", str(Path(scan).with_name("field.py")),
            "--strategy", "dps-fitted", "--set", f"steps={steps}", "--batch-size", batch])
if code:
    sys.exit(code)
"""
PEAK = """
import re
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""
PLUGIN = '''
"""The Gaussian field in the size of the slices."""
import invsolve
from invsolve import registry


class Field(registry.find("prior", "gaussian-field")):
    """A Gaussian field."""

    def __init__(self):
        super().__init__(size={size}, std=0.5)


@invsolve.hookimpl
def invsolve_priors():
    return {{"field": Field}}
'''


def peak(code: str, *arguments: str) -> float:
    """MiB that a process took at most."""
    command = [sys.executable, "-P", "-c", code + PEAK, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def write_scan(path: Path, slices: int, size: int) -> None:
    """A scan with half of the pixels measured, written slice by slice."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        y = file.create_dataset("y", (slices, 1, size, size), "f4", chunks=(1, 1, size, size), fletcher32=True)
        for k in range(slices):
            y[k, 0] = rng.normal(0, 0.5, (size, size))
        file.create_group("operator").attrs.update({"name": "inpainting", "fraction": 0.5, "image_size": size})
        file.create_group("noise").attrs.update({"name": "gaussian", "sigma": 0.05})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    bare, idle = peak(""), peak(IDLE)
    print(f"bare Python {bare:.0f} MiB, with invsolve and torch imported {idle:.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        scan, out = Path(folder) / "scan.h5", Path(folder) / "recon.h5"
        scan.with_name("field.py").write_text(PLUGIN.format(size=arguments.size))
        for slices in arguments.slices:
            write_scan(scan, slices, arguments.size)
            began = time.perf_counter()
            most = peak(RUN, str(scan), str(out), str(arguments.steps), str(arguments.batch_size))
            seconds = time.perf_counter() - began
            sizes = " and ".join(f"{path.stat().st_size / 2**20:.0f}" for path in (scan, out))
            print(
                f"{slices} slices of {arguments.size} x {arguments.size}: peak {most:.0f} MiB, {most - idle:.0f} above idle; "
                f"files of {sizes} MiB, {seconds:.0f} s"
            )
            scan.unlink()
            out.unlink()


if __name__ == "__main__":
    main()
