"""What the engine costs on top of the network and operator calls: dps and red-diff at 64 x 64, batch 4.

    python benchmarks/engine_overhead.py [--device cuda] [--steps 20] [--rounds 7]

Total time of a run over the time of the same number of raw calls, both measured in turns in one process; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import invsolve
from invsolve import api, engine


def clock(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    prior = invsolve.load_prior("ct-128").requires_grad_(False).eval().to(device)
    parameters = sum(p.numel() for p in prior.parameters()) / 1e6
    print(
        f"network {parameters:.1f} M parameters, torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"
    )
    x = torch.randn(4, 1, 64, 64, device=device)
    sigma = torch.tensor(0.5, device=device)
    for name, options in (
        ("inpainting", {"fraction": 0.5, "image_size": 64}),
        ("ct", {"image_size": 64, "angles": 30}),
    ):
        operator = invsolve.operator(name, **options).to(device)
        y = operator(torch.rand_like(x))
        ones = torch.ones_like(x)

        def raw_dps(operator: invsolve.Operator = operator, y: torch.Tensor = y, ones: torch.Tensor = ones) -> None:
            for _ in range(arguments.steps):
                z = x.clone().requires_grad_()
                torch.autograd.grad(prior.denoise(z, sigma), z, ones)
                d = x.clone().requires_grad_()
                torch.autograd.grad(operator(d), d, y)

        def raw_red_diff(operator: invsolve.Operator = operator, y: torch.Tensor = y) -> None:
            with torch.no_grad():
                for _ in range(arguments.steps):
                    prior.denoise(x, sigma)
                    operator(x)
                    operator.adjoint(y)

        for strategy, raw in (("dps", raw_dps), ("red-diff", raw_red_diff)):
            measurement = invsolve.Measurement(y.cpu(), operator, invsolve.Gaussian(0.1))
            chosen = invsolve.strategy(strategy, steps=arguments.steps)

            def ours(measurement: invsolve.Measurement = measurement, chosen: invsolve.Strategy = chosen) -> None:
                run = api.plan(measurement, prior, chosen, engine.Options(batch_size=4, device=device))
                run.execute(api.Memory(4))

            ours()
            raw()
            ratios = [clock(device, ours) / clock(device, raw) for _ in range(arguments.rounds)]
            spread = f"{min(ratios):.3f} .. {max(ratios):.3f}"
            print(f"{name:10s} {strategy:9s} total / raw calls: median {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
