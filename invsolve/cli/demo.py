"""The demo: a synthetic patient and a phantom scanned by sparse-view CT, five methods, one table, two pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from invsolve import api, jobs
from invsolve.api import metrics
from invsolve.api.sampling import draw
from invsolve.contracts.scale import Scale
from invsolve.datasets import hdf5, phantoms
from invsolve.engine import Options
from invsolve.report import sheet, write_report

SIZE, VIEWS, NOISE = 128, 24, 0.3
PRIOR = "ct-128"
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "tv": {"steps": 1500},
    "red-diff": {"steps": 80, "weight": 0.08},
    "dps-fitted": {"steps": 60},
    "mmps": {"steps": 16},
}
#: One sample of most; two of the last, for a mean and a first idea of the uncertainty within the minute.
SAMPLES = {"mmps": 2}


def run_demo(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Scan, reconstruct by each method, score, draw. Returns rows for the table and the pictures' paths."""
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    prior = api.load_prior(PRIOR)
    say(f"drawing a synthetic patient from the bundled prior {PRIOR!r} (no real person), and an analytic phantom")
    # Attenuation from 0 (air) to 1 (the prior's largest, dense bone), as the scanner below measures it.
    low, high = 0.0, 1.0
    patient = Scale.from_range(low, high).to_physical(draw(prior, seed=0)).clamp(low, high)
    truth = torch.cat([patient, phantoms.render(phantoms.thorax(), SIZE)[None]])
    hdf5.write_images(folder / "truth.h5", truth, overwrite=True)
    say(
        f"scanning: {VIEWS} views, {SIZE} x {SIZE} pixels, noise {NOISE} in line integrals up to {float(truth.sum(-1).max()):.0f}"
    )
    scan = folder / "scan.h5"
    parameters = {"image_size": SIZE, "angles": VIEWS}
    jobs.simulate_file(folder / "truth.h5", scan, "ct", parameters, f"gaussian:{NOISE}", seed=0, overwrite=True)

    rows, images, span = [], [], metrics.data_range(truth)
    for method, settings in METHODS.items():
        say(f"{method} ...")
        out = folder / f"{method}.h5"
        samples = SAMPLES.get(method, 1)
        options = Options(samples=samples, scale=(low, high))
        request = jobs.Request(scan, out, PRIOR, method, settings, options, overwrite=True)
        start = time.perf_counter()
        jobs.reconstruct_file(request)
        seconds = time.perf_counter() - start
        result = hdf5.read_result(out)
        image = result.mean[0 : len(truth)]
        scores = [metrics.score(image[i], truth[i], span) for i in range(len(truth))]
        calls = samples * float(result.diagnostics["network_calls"][0] + result.diagnostics["vjp_calls"][0])
        rows.append({"method": method, **metrics.average(scores), "network_calls": calls, "seconds": seconds})
        images.append((method, image, scores))
    overview, detail = folder / "demo.png", folder / "mmps.png"
    names = ("synthetic patient", "phantom")
    pictures = [
        (names[i], [("truth", truth[i]), *((f"{m} {s[i]['psnr']:.1f} dB", x[i]) for m, x, s in images)])
        for i in range(len(truth))
    ]
    sheet(pictures, (low, high), overview)
    write_report(folder / "mmps.h5", detail, None, None, overwrite=True)
    return {"rows": rows, "pictures": [str(overview), str(detail)], "seconds": time.perf_counter() - began}
