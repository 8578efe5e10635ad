"""The network in bfloat16: close to float32, recorded, and refused where there is no network."""

import pytest
import torch

import invsolve


def test_only_the_network_is_reduced() -> None:
    operator, noise = invsolve.operator("inpainting", mask=torch.ones(32, 32)), invsolve.Gaussian(0.02)
    truth = (
        torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
    )
    y = invsolve.simulate(truth, operator, noise)
    seen = []

    class Watched(type(operator)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    results = {
        precision: invsolve.reconstruct(
            y,
            Watched(mask=torch.ones(32, 32)),
            "natural",
            noise=noise,
            strategy=invsolve.strategy("moment", steps=6),
            precision=precision,
            progress=False,
        )
        for precision in ("float32", "bf16")
    }
    assert set(seen) == {(torch.float32, False)}
    full, half = (results[p].samples for p in ("float32", "bf16"))
    assert half.dtype == torch.float32
    assert float((full - half).abs().max()) > 0
    # A tenth of the noise is left to the network's rounding.
    assert float((full - half).square().mean().sqrt()) < 0.1 * 0.02
    assert results["bf16"].provenance["precision"] == "bf16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be float32 or bf16, got 'fp8'"),
        ({"precision": "bf16", "prior": "gaussian-field"}, "is for network priors"),
        ({"precision": "bf16", "strategy": "tv"}, "this run has no network: leave it out"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, message: str) -> None:
    given = {"prior": None, "strategy": "dds"} | options
    if given["prior"]:
        given["prior"] = invsolve.load_prior("gaussian-field", size=16)
    operator = invsolve.operator("inpainting", mask=torch.ones(16, 16))
    with pytest.raises(invsolve.UserError, match=message):
        invsolve.reconstruct(torch.zeros(1, 1, 16, 16), operator, noise=invsolve.Gaussian(0.1), **given)
