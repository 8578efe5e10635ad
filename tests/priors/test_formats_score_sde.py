"""score_sde checkpoints: NCSN++ and DDPM++ in their numbered layout, against a transcription that reads the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import invsolve
from invsolve import UserError
from invsolve.testing import check_prior
from tests.support.functional import (
    Maker,
    Weights,
    attend,
    conv,
    dense,
    doubled,
    error,
    filtered,
    halved,
    norm,
    silu,
    waves,
)

TAPS = [1.0, 3.0, 3.0, 1.0]
VE: dict[str, Any] = {
    "model": {
        "name": "ncsnpp", "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "fir": True,
        "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan", "progressive": "none",
        "progressive_input": "residual", "progressive_combine": "sum", "embedding_type": "fourier", "conditional": True,
        "scale_by_sigma": True, "nonlinearity": "swish", "resamp_with_conv": True, "sigma_min": 0.01, "sigma_max": 378.0,
    },
    "data": {"image_size": 16, "num_channels": 1, "centered": False},
    "training": {"sde": "vesde", "continuous": True, "batch_size": 3},
    "seed": 42,
}  # fmt: skip


def changed(data: dict[str, Any] | None = None, training: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {
        "model": VE["model"] | model,
        "data": VE["data"] | (data or {}),
        "training": VE["training"] | (training or {}),
    }


VP = changed(
    {"centered": True, "num_channels": 3}, {"sde": "vpsde"}, fir=False, progressive_input="none", embedding_type="positional",
    scale_by_sigma=False,
)  # fmt: skip
CONFIGS = {
    "ve, residual input (DiffusionMBIR)": VE,
    "ve, skips in and out (FFHQ)": changed(progressive="output_skip", progressive_input="input_skip"),
    "ve, beside": changed(progressive_input="input_skip", progressive_combine="cat", skip_rescale=False),
    "vp, ddpm++": VP,
    "vp, ddpm": changed(
        VP["data"],
        VP["training"],
        name="ddpm",
        nf=64,
        ch_mult=[1, 1],
        embedding_type="positional",
        scale_by_sigma=False,
    ),
}


class Walk:
    """Makes the weights, or runs them, in the one order that numbers and order of computation share."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.m, self.data = config["model"], config["data"]
        self.ddpm = self.m["name"] == "ddpm"
        self.factor = 0.5**0.5 if self.m["skip_rescale"] and not self.ddpm else 1.0
        self.fir = self.m["fir"] and not self.ddpm
        self.outskip, self.into = self.m["progressive"] == "output_skip", self.m["progressive_input"]
        if self.ddpm:
            self.outskip, self.into = False, "none"

    def __call__(self, w: Weights | None, x: Tensor, label: Tensor) -> tuple[Weights, Tensor]:
        self.make = Maker(3) if w is None else None
        self.w = self.make.weights if self.make else dict(w or {})
        self.n = 0
        nf, channels = self.m["nf"], self.data["num_channels"]
        scaled = x if self.data["centered"] else 2 * x - 1
        if self.m["embedding_type"] == "fourier":
            at = self.next()
            if self.make:
                self.make.put(f"{at}.W", nf)
            angle = 2 * torch.pi * label.log()[:, None] * self.w[f"{at}.W"]
            told = torch.cat([torch.sin(angle), torch.cos(angle)], 1)
        else:
            told = torch.cat(waves(label, nf, nf // 2 - 1), 1)
        told = self.dense(self.next(), told, 4 * nf)
        self.told = self.dense(self.next(), silu(told), 4 * nf)
        h = self.conv(self.next(), scaled, nf)
        stack, pyramid = [h], scaled
        for level, mult in enumerate(self.m["ch_mult"]):
            attended = self.data["image_size"] // 2**level in self.m["attn_resolutions"]
            for _ in range(self.m["num_res_blocks"]):
                h = self.block(h, mult * nf)
                h = self.attention(h) if attended else h
                stack.append(h)
            if level == len(self.m["ch_mult"]) - 1:
                break
            h = self.conv_down(h) if self.ddpm else self.block(h, h.shape[1], "down")
            if self.into == "input_skip":
                pyramid = filtered(pyramid, TAPS, up=False)
                mapped = self.conv(f"{self.next()}.Conv_0", pyramid, h.shape[1], 1)
                h = mapped + h if self.m["progressive_combine"] == "sum" else torch.cat([mapped, h], 1)
            elif self.into == "residual":
                h = pyramid = (self.filtered_conv(f"{self.next()}.Conv2d_0", pyramid, h.shape[1]) + h) * self.factor
            stack.append(h)
        h = self.block(self.attention(self.block(h, h.shape[1])), h.shape[1])
        shown: Tensor | float = 0.0
        for level, mult in reversed(list(enumerate(self.m["ch_mult"]))):
            for _ in range(self.m["num_res_blocks"] + 1):
                h = self.block(torch.cat([h, stack.pop()], 1), mult * nf)
            if self.data["image_size"] // 2**level in self.m["attn_resolutions"]:
                h = self.attention(h)
            if self.outskip:
                shown = filtered(shown, TAPS, up=True) if isinstance(shown, Tensor) else 0.0
                normed = silu(self.norm(self.next(), h))
                shown = shown + self.conv(self.next(), normed, channels)
            if level and self.ddpm:
                h = self.conv(f"{self.next()}.Conv_0", doubled(h), h.shape[1])
            elif level:
                h = self.block(h, h.shape[1], "up")
        if not self.outskip:
            h = silu(self.norm(self.next(), h))
            shown = self.conv(self.next(), h, channels)
        assert isinstance(shown, Tensor)
        out = shown / label.view(-1, 1, 1, 1) if self.m["scale_by_sigma"] else shown
        return self.w, out

    def next(self) -> str:
        self.n += 1
        return f"all_modules.{self.n - 1}"

    def dense(self, at: str, x: Tensor, out: int) -> Tensor:
        if self.make:
            self.make.affine(at, out, x.shape[1])
        return dense(self.w, at, x)

    def conv(self, at: str, x: Tensor, out: int, size: int = 3) -> Tensor:
        if self.make:
            self.make.affine(at, out, x.shape[1], size, size)
        return conv(self.w, at, x)

    def norm(self, at: str, x: Tensor) -> Tensor:
        if self.make:
            self.make.norm(at, x.shape[1])
        return norm(self.w, at, x, 32 if self.ddpm else min(32, x.shape[1] // 4), 1e-6)

    def nin(self, at: str, x: Tensor, out: int) -> Tensor:
        if self.make:
            self.make.put(f"{at}.W", x.shape[1], out)
            self.make.put(f"{at}.b", out, gain=0.1)
        y = torch.einsum("io,bihw->bohw", self.w[f"{at}.W"], x)
        return y + self.w[f"{at}.b"].view(1, -1, 1, 1)

    def filtered_conv(self, at: str, x: Tensor, out: int) -> Tensor:
        """Filter the image with a border of zeros, then convolve at every second pixel."""
        if self.make:
            self.make.affine(at, out, x.shape[1], 3, 3)
        # Zeros stand two pixels wide about the image, so that what a shifted copy finds outside is what the original finds.
        smooth = stretched(F.pad(x, (2, 2, 2, 2)))
        return conv(self.w, at, smooth, stride=2, padding=0)

    def conv_down(self, x: Tensor) -> Tensor:
        at = f"{self.next()}.Conv_0"
        if self.make:
            self.make.affine(at, x.shape[1], x.shape[1], 3, 3)
        return conv(self.w, at, F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)

    def attention(self, x: Tensor) -> Tensor:
        at = self.next()
        h = self.norm(f"{at}.GroupNorm_0", x)
        q, k, v = (self.nin(f"{at}.NIN_{i}", h, x.shape[1]).flatten(2) for i in range(3))
        return (x + self.nin(f"{at}.NIN_3", attend(q, k, v).reshape(x.shape), x.shape[1])) * self.factor

    def block(self, x: Tensor, out: int, resize: str = "") -> Tensor:
        at, inside = self.next(), x.shape[1]

        def resized(v: Tensor) -> Tensor:
            if self.fir and resize:
                return filtered(v, TAPS, up=resize == "up")
            return {"": lambda u: u, "up": doubled, "down": halved}[resize](v)

        h = self.conv(f"{at}.Conv_0", resized(silu(self.norm(f"{at}.GroupNorm_0", x))), out)
        h = h + self.dense(f"{at}.Dense_0", silu(self.told), out)[:, :, None, None]
        h = self.conv(f"{at}.Conv_1", silu(self.norm(f"{at}.GroupNorm_1", h)), out)
        x = resized(x)
        if self.ddpm:
            x = self.nin(f"{at}.NIN_0", x, out) if inside != out else x
        elif inside != out or resize:
            x = self.conv(f"{at}.Conv_2", x, out, 1)
        return (x + h) * self.factor


def stretched(x: Tensor) -> Tensor:
    """Filtered by TAPS where the filter lies within x."""
    k, n = torch.tensor(TAPS) / sum(TAPS), len(TAPS)
    rows, columns = x.shape[-2] - n + 1, x.shape[-1] - n + 1
    return sum(k[i] * k[j] * x[..., i : i + rows, j : j + columns] for i in range(n) for j in range(n))  # type: ignore[return-value]


def make(config: dict[str, Any]) -> Weights:
    channels, size = config["data"]["num_channels"], config["data"]["image_size"]
    return Walk(config)(None, torch.zeros(1, channels, size, size), torch.ones(1))[0]


def write(path: Path, config: dict[str, Any], weights: Weights, ema: bool = False) -> None:
    """A checkpoint as score_sde's trainer writes it, of a network within DataParallel."""
    content: dict[str, Any] = {"optimizer": {"state": {}, "param_groups": []}, "step": 7}
    content["model"] = {f"module.{n}": v for n, v in weights.items()}
    content["model"]["module.sigmas"] = torch.linspace(378, 0.01, 1000, dtype=torch.float64)
    if ema:
        content["model"] = {n: v + 1.0 if n.endswith("bias") else v for n, v in content["model"].items()}
        frozen = "all_modules.0.W" if config["model"]["embedding_type"] == "fourier" else ""
        content["ema"] = {
            "decay": 0.999,
            "num_updates": 3,
            "shadow_params": [v for n, v in weights.items() if n != frozen],
        }
    torch.save(content, path)
    path.with_suffix(".json").write_text(json.dumps(config))


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_same_function_as_the_transcription(name: str, ema: bool, tmp_path: Path) -> None:
    config, path = CONFIGS[name], tmp_path / "checkpoint_10.pth"
    weights = make(config)
    write(path, config, weights, ema)
    prior = invsolve.load_prior(path, self_test=False)
    x = torch.randn(2, config["data"]["num_channels"], 16, 16, generator=torch.Generator().manual_seed(0))
    walk = Walk(config)
    with torch.no_grad():
        if config["training"]["sde"] == "vesde":
            # The network sees images from 0 to 1; the prior is asked in -1 to 1.
            sigma = torch.tensor([0.2, 30.0])
            score = walk(weights, x, sigma)[1]
            assert error(prior.net(x, sigma), score) < 1e-5
            wanted = x + sigma.view(-1, 1, 1, 1) ** 2 * score
            assert error(prior.denoise(2 * x - 1, 2 * sigma), 2 * wanted - 1) < 1e-5
            assert (prior.sigma_min, prior.sigma_max) == (0.02, 756.0)
        else:
            # As score_sde has it: label 999 t, mean exp(-(t^2 (20 - 0.1) / 4 + 0.1 t / 2)) x0.
            t = torch.tensor([0.02, 0.7])
            log_mean = (-0.25 * t**2 * 19.9 - 0.5 * t * 0.1).view(-1, 1, 1, 1)
            std = (1 - (2 * log_mean).exp()).sqrt()
            noise = walk(weights, x, 999 * t)[1]
            assert error(prior.net(x, 999 * t), noise) < 1e-5
            wanted = (x - std * noise) / log_mean.exp()
            estimate = prior.denoise(x / log_mean.exp(), (std / log_mean.exp()).flatten())
            assert error(estimate, wanted) < 2e-5


def test_conformance(tmp_path: Path) -> None:
    for name in ("ve, residual input (DiffusionMBIR)", "vp, ddpm++"):
        path = tmp_path / f"{len(name)}.pth"
        weights = make(CONFIGS[name])
        last = max((n for n in weights if n.endswith("weight")), key=lambda n: int(n.split(".")[1]))
        write(path, CONFIGS[name], weights | {last: 0.1 * weights[last]})
        prior = invsolve.load_prior(path, self_test=False)
        report = check_prior(prior, (prior.event_shape[0] or 1, 13, 18))
        assert report, str(report)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "needs a side file"),
        (changed(progressive="residual"), "model.progressive = 'residual' is not read"),
        (changed(training={"sde": "subvpsde"}), "'subvpsde' is not read"),
        (changed(training={"continuous": False}), "only continuous VE"),
        (changed(nonlinearity="elu"), "'elu' is not read"),
        (changed(ch_mult=[1, 3]), "do not fit"),
        (VE | {"colour": "blue"}, "unknown key 'colour'"),
    ],
)
def test_what_is_not_read_gets_one_line(config: dict[str, Any] | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    write(path, VE, make(VE))
    side = path.with_suffix(".json")
    side.unlink() if config is None else side.write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
