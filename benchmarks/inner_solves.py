"""What the inner solves of the linear strategies cost: time a step over one network call plus one operator pass.

    python benchmarks/inner_solves.py [--prior ct-128] [--size 64] [--angles 60] [--device cuda] [--steps 30] [--rounds 5]

CT, batch 4, 64 x 64, 60 angles. The pass is one forward and one adjoint; for strategies with a gradient through the network
its backward pass counts into the network. Run and raw calls are measured in turns in one process; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import invsolve
from invsolve import api, engine

BACKWARD = ("pigdm", "mcg")


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
    parser.add_argument("--prior", default="ct-128")
    parser.add_argument("--strategies", nargs="+", default=["diffpir", "dds", "pigdm"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--angles", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.3, help="standard deviation, in line integrals of pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    prior = invsolve.load_prior(arguments.prior).requires_grad_(False).eval().to(device)
    parameters = sum(p.numel() for p in prior.parameters()) / 1e6
    print(
        f"network {parameters:.1f} M parameters, torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"
    )
    operator = invsolve.operator("ct", image_size=arguments.size, angles=arguments.angles).to(device)
    assert isinstance(operator, invsolve.LinearOperator)
    # Smooth blobs in grey values 0 to 1, the prior's physical range: something that a solver has to work for.
    coarse = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = torch.nn.functional.interpolate(coarse, size=arguments.size, mode="bicubic").clamp(0, 1).to(device)
    y = invsolve.simulate(truth.cpu(), operator.cpu(), invsolve.Gaussian(arguments.noise), seed=0)
    operator = operator.to(device)
    x, sinogram, sigma = torch.randn_like(truth), y.to(device), torch.tensor(0.5, device=device)
    ones = torch.ones_like(x)

    def raw(backward: bool) -> None:
        for _ in range(arguments.steps):
            if backward:
                z = x.clone().requires_grad_()
                torch.autograd.grad(prior.denoise(z, sigma), z, ones)
            with torch.no_grad():
                if not backward:
                    prior.denoise(x, sigma)
                operator(x)
                operator.adjoint(sinogram)

    measurement = invsolve.Measurement(y, operator, invsolve.Gaussian(arguments.noise))
    for name in arguments.strategies:
        chosen = invsolve.strategy(name, steps=arguments.steps)
        sink = api.Memory(4)

        def ours(chosen: invsolve.Strategy = chosen) -> None:
            nonlocal sink
            sink = api.Memory(4)
            api.plan(measurement, prior, chosen, engine.Options(batch_size=4, device=device)).execute(sink)

        def calls(name: str = name) -> None:
            raw(name in BACKWARD)

        ours()
        calls()
        pairs = [(clock(device, ours), clock(device, calls)) for _ in range(arguments.rounds)]
        ratios = [mine / theirs for mine, theirs in pairs]
        passes = sink.facts[0]["operator_calls"] / (2 * arguments.steps)
        print(
            f"{name:8s} total / (network + one operator pass): median {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} .. {max(ratios):.3f}); {passes:.1f} operator passes a step, "
            f"{1e3 * statistics.median(m for m, _ in pairs) / arguments.steps:.1f} ms a step"
        )


if __name__ == "__main__":
    main()
