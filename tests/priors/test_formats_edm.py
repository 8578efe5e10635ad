"""EDM state dicts: SongUNet and DhariwalUNet in their named layout, against a transcription that reads the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import invsolve
from invsolve import UserError
from invsolve.testing import check_prior
from tests.support.functional import Maker, Weights, attend, conv, dense, error, filtered, norm, silu, waves

SONG: dict[str, Any] = {"channels": 16, "mult": [1, 2], "blocks": 2, "attention": [8], "taps": [1.0, 1.0], "colours": 3}
NETS: dict[str, dict[str, Any]] = {
    "ddpm++": SONG,
    "ncsn++": SONG | {"taps": [1.0, 3.0, 3.0, 1.0], "encoder": "residual", "fourier": True},
    "skips": SONG | {"taps": [1.0, 3.0, 3.0, 1.0], "encoder": "skip", "decoder": "skip", "augment": 9},
    "ddpm++ of a class": SONG | {"classes": 7},
    "adm of a class": SONG | {"channels": 64, "dhariwal": True, "blocks": 1, "colours": 1, "classes": 4},
    "adm": SONG | {"channels": 64, "dhariwal": True, "blocks": 1, "colours": 1},
}

#: Of the class-conditional networks.
CLASS = 2


class Walk:
    """Makes the weights, or runs them, block by block as the names say; images of 16 x 16."""

    def __init__(self, net: dict[str, Any]) -> None:
        self.net, self.dhariwal = net, net.get("dhariwal", False)
        self.factor = 1.0 if self.dhariwal else math.sqrt(0.5)
        self.eps = 1e-5 if self.dhariwal else 1e-6

    def __call__(self, w: Weights | None, x: Tensor, label: Tensor) -> tuple[Weights, Tensor]:
        self.make = Maker(5) if w is None else None
        self.w = self.make.weights if self.make else dict(w or {})
        c, net = self.net["channels"], self.net
        wide = c * (2 if net.get("fourier") else 1)
        if net.get("fourier"):
            if self.make:
                self.make.put("map_noise.freqs", wide // 2)
            angle = 2 * torch.pi * label[:, None] * self.w["map_noise.freqs"]
            sine, cosine = torch.sin(angle), torch.cos(angle)
        else:
            sine, cosine = waves(label, wide, wide // 2 - (0 if self.dhariwal else 1))
        if self.make and net.get("augment"):
            self.make.put("map_augment.weight", wide, net["augment"])
        told = torch.cat([cosine, sine] if self.dhariwal else [sine, cosine], 1)
        if not self.dhariwal:
            # A one-hot label times the root of the number of classes, through a layer with a bias.
            told = told + self.of_class(wide) * math.sqrt(net.get("classes", 0))
            told = told + (self.w["map_label.bias"] if net.get("classes") else 0)
        told = self.dense("map_layer1", silu(self.dense("map_layer0", told, 4 * c)), 4 * c)
        self.told = silu(told + self.of_class(4 * c) if self.dhariwal else told)
        stack, image = [], x
        for level, mult in enumerate(net["mult"]):
            size = 16 >> level
            at = f"enc.{size}x{size}"
            if level == 0:
                x = self.conv(f"{at}_conv", x, c * (mult if self.dhariwal else 1))
            else:
                x = self.block(f"{at}_down", x, x.shape[1], resize="down")
            stack.append(x)
            if level and net.get("encoder") == "skip":
                self.taps(f"{at}_aux_down")
                image = filtered(image, net["taps"], up=False)
                x = stack[-1] = x + self.conv(f"{at}_aux_skip", image, x.shape[1], 1)
            elif level and net.get("encoder") == "residual":
                self.taps(f"{at}_aux_residual")
                mapped = self.fused(f"{at}_aux_residual", image, x.shape[1])
                x = stack[-1] = image = (x + mapped) / math.sqrt(2)
            for i in range(net["blocks"]):
                x = self.block(f"{at}_block{i}", x, mult * c, attention=size in net["attention"])
                stack.append(x)
        shown: Tensor | float = 0.0
        for level, mult in reversed(list(enumerate(net["mult"]))):
            size = 16 >> level
            at = f"dec.{size}x{size}"
            if level == len(net["mult"]) - 1:
                x = self.block(f"{at}_in0", x, x.shape[1], attention=True)
                x = self.block(f"{at}_in1", x, x.shape[1])
            else:
                x = self.block(f"{at}_up", x, x.shape[1], resize="up")
            for i in range(net["blocks"] + 1):
                attended = size in net["attention"] and (self.dhariwal or i == net["blocks"])
                x = self.block(f"{at}_block{i}", torch.cat([x, stack.pop()], 1), mult * c, attention=attended)
            if not self.dhariwal and (net.get("decoder") == "skip" or level == 0):
                if net.get("decoder") == "skip" and isinstance(shown, Tensor):
                    self.taps(f"{at}_aux_up")
                    shown = filtered(shown, net["taps"], up=True)
                h = silu(self.norm(f"{at}_aux_norm", x, 1e-6))
                shown = shown + self.conv(f"{at}_aux_conv", h, net["colours"])
        if self.dhariwal:
            shown = self.conv("out_conv", silu(self.norm("out_norm", x, 1e-5)), net["colours"])
        assert isinstance(shown, Tensor)
        return self.w, shown

    def of_class(self, width: int) -> Tensor:
        """What the class CLASS adds to the embedding; nothing in networks without classes."""
        if not self.net.get("classes"):
            return torch.zeros(width)
        if self.make:
            self.make.put("map_label.weight", width, self.net["classes"])
            if not self.dhariwal:
                self.make.put("map_label.bias", width)
        return self.w["map_label.weight"][:, CLASS]

    def taps(self, at: str) -> None:
        if self.make:
            k = torch.tensor(self.net["taps"])
            self.make.weights[f"{at}.resample_filter"] = (torch.outer(k, k) / k.sum() ** 2)[None, None]

    def dense(self, at: str, x: Tensor, out: int) -> Tensor:
        if self.make:
            self.make.affine(at, out, x.shape[1])
        return dense(self.w, at, x)

    def conv(self, at: str, x: Tensor, out: int, size: int = 3) -> Tensor:
        if self.make:
            self.make.affine(at, out, x.shape[1], size, size)
        return conv(self.w, at, x)

    def norm(self, at: str, x: Tensor, eps: float) -> Tensor:
        if self.make:
            self.make.norm(at, x.shape[1])
        return norm(self.w, at, x, min(32, x.shape[1] // 4), eps)

    def fused(self, at: str, x: Tensor, out: int) -> Tensor:
        """Filter a widely bordered image, then convolve at every second pixel."""
        if self.make:
            self.make.affine(at, out, x.shape[1], 3, 3)
        k, n = torch.tensor(self.net["taps"]) / sum(self.net["taps"]), len(self.net["taps"])
        wide = F.pad(x, (n // 2, n // 2, n // 2, n // 2))
        rows = wide.shape[-1] - n + 1
        smooth = sum(k[i] * k[j] * wide[..., i : i + rows, j : j + rows] for i in range(n) for j in range(n))
        assert isinstance(smooth, Tensor)
        return conv(self.w, at, smooth, stride=2, padding=0)

    def block(self, at: str, x: Tensor, out: int, resize: str = "", attention: bool = False) -> Tensor:
        def resized(v: Tensor) -> Tensor:
            return filtered(v, self.net["taps"], up=resize == "up") if resize else v

        h = resized(silu(self.norm(f"{at}.norm0", x, self.eps)))
        h = self.conv(f"{at}.conv0", h, out)
        e = self.dense(f"{at}.affine", self.told, out * (2 if self.dhariwal else 1))[:, :, None, None]
        if self.dhariwal:
            h = self.norm(f"{at}.norm1", h, self.eps) * (1 + e[:, :out]) + e[:, out:]
        else:
            h = self.norm(f"{at}.norm1", h + e, self.eps)
        h = self.conv(f"{at}.conv1", silu(h), out)
        if resize:
            self.taps(f"{at}.conv0")
            self.taps(f"{at}.skip")
        y = resized(x)
        if x.shape[1] != out or (resize and not self.dhariwal):
            y = self.conv(f"{at}.skip", y, out, 1)
        x = (y + h) * self.factor
        if attention:
            qkv = self.conv(f"{at}.qkv", self.norm(f"{at}.norm2", x, self.eps), 3 * out, 1).flatten(2)
            width = 64 if self.dhariwal else out
            heads = [qkv[:, 3 * width * h : 3 * width * (h + 1)] for h in range(out // width)]
            mixed = torch.cat([attend(h[:, 0::3], h[:, 1::3], h[:, 2::3]) for h in heads], 1).reshape(x.shape)
            x = (x + self.conv(f"{at}.proj", mixed, out, 1)) * self.factor
        return x


def make(net: dict[str, Any]) -> Weights:
    return Walk(net)(None, torch.zeros(1, net["colours"], 16, 16), torch.zeros(1))[0]


def denoised(net: dict[str, Any], weights: Weights, precond: str, x: Tensor, sigma: Tensor) -> Tensor:
    """Table 1 of the paper, with what each preconditioning feeds the network."""
    s, walk = sigma.view(-1, 1, 1, 1), Walk(net)
    if precond == "edm":
        total = s**2 + 0.5**2
        out = walk(weights, x / total.sqrt(), sigma.log() / 4)[1]
        return 0.5**2 / total * x + s * 0.5 / total.sqrt() * out
    if precond == "vp":
        t = ((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
        return x - s * walk(weights, x / (1 + s**2).sqrt(), 999 * t)[1]
    return x + s * walk(weights, x, (sigma / 2).log())[1]


@pytest.mark.parametrize("precond", ["edm", "vp", "ve"])
@pytest.mark.parametrize("name", list(NETS))
def test_same_function_as_the_transcription(name: str, precond: str, tmp_path: Path) -> None:
    net, path = NETS[name], tmp_path / "network.safetensors"
    weights = make(net)
    if name == "ncsn++":
        # Frequencies 100 times as high as at 999 would be noise in single precision.
        weights["map_noise.freqs"] /= 20
    from safetensors.torch import save_file

    # Safetensors forgets the order of the names, which is that of the layers.
    save_file({f"model.{n}": v.contiguous() for n, v in weights.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"format": "edm", "precond": precond, "data_range": [0, 2]}))
    given: Any = {"class_label": CLASS} if net.get("classes") else {}
    prior = invsolve.load_prior(path, self_test=False, **given)
    assert prior.data_range == (0.0, 2.0)
    sigma = torch.tensor([0.05, 3.0])
    x = torch.randn(2, net["colours"], 16, 16, generator=torch.Generator().manual_seed(0)) * sigma.view(-1, 1, 1, 1)
    with torch.no_grad():
        assert error(prior.denoise(x, sigma), denoised(net, weights, precond, x, sigma)) < 1e-5


def test_bare_state_dict_and_conformance(tmp_path: Path) -> None:
    for name in ("ddpm++", "adm"):
        path = tmp_path / f"{name}.pt"
        torch.save(make(NETS[name]), path)
        prior = invsolve.load_prior(path, self_test=False)
        report = check_prior(prior, (prior.event_shape[0] or 1, 13, 18))
        assert report, str(report)


def test_what_is_not_read_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    weights = make(SONG)
    for change, text in (
        ({"map_label.weight": torch.zeros(4, 10)}, "class-conditional"),
        ({"enc.16x16_strange.weight": torch.zeros(1)}, "no kind that EDM's networks have"),
        ({"dec.16x16_block0.surprise": torch.zeros(1)}, "left over"),
    ):
        torch.save(weights | change, path)
        with pytest.raises(UserError, match=text) as caught:
            invsolve.load_prior(path)
        assert "\n" not in str(caught.value)
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"precond=.* is not .edm"):
        invsolve.load_prior(path, precond="iddpm")
