"""guided-diffusion state dicts: read into the same function as a transcription from the published layout, at small size."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import UserError
from invsolve.testing import check_prior
from tests.support.functional import Maker, Weights, attend, conv, dense, doubled, error, halved, norm, silu, waves


@dataclass
class Model:
    """The settings of guided-diffusion's `create_model` that matter, and what its U-Net is named and does."""

    channels: int = 32
    mult: tuple[int, ...] = (1, 1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    head: int = 16
    heads: int = 0
    scale_shift: bool = True
    updown: bool = True
    learned: bool = True
    new_order: bool = False
    colours: int = 3
    plan: dict[str, str] = field(default_factory=dict)

    def make(self, gain: float = 1.0) -> Weights:
        m, wide = Maker(), 4 * self.channels
        self.plan = {}
        m.affine("time_embed.0", wide, self.channels)
        m.affine("time_embed.2", wide, wide)
        m.affine("input_blocks.0.0", self.channels, self.colours, 3, 3)
        now, stack, n, ds = self.channels, [self.channels], 1, 1
        for level, mult in enumerate(self.mult):
            for _ in range(self.blocks):
                self._residual(m, f"input_blocks.{n}.0", now, mult * self.channels)
                now = mult * self.channels
                if ds in self.attention:
                    self._attention(m, f"input_blocks.{n}.1", now)
                stack.append(now)
                n += 1
            if level < len(self.mult) - 1:
                if self.updown:
                    self._residual(m, f"input_blocks.{n}.0", now, now, "down")
                else:
                    m.affine(f"input_blocks.{n}.0.op", now, now, 3, 3)
                stack.append(now)
                n += 1
                ds *= 2
        self._residual(m, "middle_block.0", now, now)
        self._attention(m, "middle_block.1", now)
        self._residual(m, "middle_block.2", now, now)
        n = 0
        for level, mult in reversed(list(enumerate(self.mult))):
            for i in range(self.blocks + 1):
                self._residual(m, f"output_blocks.{n}.0", now + stack.pop(), mult * self.channels)
                now, k = mult * self.channels, 1
                if ds in self.attention:
                    self._attention(m, f"output_blocks.{n}.{k}", now)
                    k += 1
                if level and i == self.blocks:
                    if self.updown:
                        self._residual(m, f"output_blocks.{n}.{k}", now, now, "up")
                    else:
                        m.affine(f"output_blocks.{n}.{k}.conv", now, now, 3, 3)
                    ds //= 2
                n += 1
        m.norm("out.0", now)
        m.affine("out.2", self.colours * (2 if self.learned else 1), self.channels, 3, 3, gain=gain)
        return m.weights

    def _residual(self, m: Maker, at: str, inside: int, out: int, resize: str = "") -> None:
        m.norm(f"{at}.in_layers.0", inside)
        m.affine(f"{at}.in_layers.2", out, inside, 3, 3)
        m.affine(f"{at}.emb_layers.1", (2 if self.scale_shift else 1) * out, 4 * self.channels)
        m.norm(f"{at}.out_layers.0", out)
        m.affine(f"{at}.out_layers.3", out, out, 3, 3)
        if inside != out:
            m.affine(f"{at}.skip_connection", out, inside, 1, 1)
        self.plan[at] = resize

    def _attention(self, m: Maker, at: str, channels: int) -> None:
        m.norm(f"{at}.norm", channels)
        m.affine(f"{at}.qkv", 3 * channels, channels, 1)
        m.affine(f"{at}.proj_out", channels, channels, 1)

    def run(self, w: Weights, x: Tensor, t: Tensor) -> Tensor:
        sine, cosine = waves(t, self.channels, self.channels // 2)
        told = dense(w, "time_embed.2", silu(dense(w, "time_embed.0", torch.cat([cosine, sine], 1))))
        stack: list[Tensor] = []
        for n in range(1000):
            if f"input_blocks.{n}.0" not in {name.rsplit(".", 1)[0] for name in w} | set(self.plan) | self._ops(w):
                break
            x = self._block(w, f"input_blocks.{n}", x, told)
            stack.append(x)
        x = self._block(w, "middle_block", x, told)
        for n in range(len(stack)):
            x = self._block(w, f"output_blocks.{n}", torch.cat([x, stack.pop()], 1), told)
        return conv(w, "out.2", silu(norm(w, "out.0", x, 32, 1e-5)))

    @staticmethod
    def _ops(w: Weights) -> set[str]:
        return {name.removesuffix(".op.weight") for name in w if name.endswith(".op.weight")}

    def _block(self, w: Weights, at: str, x: Tensor, told: Tensor) -> Tensor:
        for k in range(3):
            here = f"{at}.{k}"
            if f"{here}.qkv.weight" in w:
                x = self._attended(w, here, x)
            elif here in self.plan:
                x = self._mixed(w, here, x, told)
            elif f"{here}.op.weight" in w:
                x = conv(w, f"{here}.op", x, stride=2)
            elif f"{here}.conv.weight" in w:
                x = conv(w, f"{here}.conv", doubled(x))
            elif f"{here}.weight" in w:
                x = conv(w, here, x)
        return x

    def _mixed(self, w: Weights, at: str, x: Tensor, told: Tensor) -> Tensor:
        resize = {"": lambda v: v, "up": doubled, "down": halved}[self.plan[at]]
        h = conv(w, f"{at}.in_layers.2", resize(silu(norm(w, f"{at}.in_layers.0", x, 32, 1e-5))))
        e = dense(w, f"{at}.emb_layers.1", silu(told))[:, :, None, None]
        if self.scale_shift:
            half = h.shape[1]
            h = norm(w, f"{at}.out_layers.0", h, 32, 1e-5) * (1 + e[:, :half]) + e[:, half:]
        else:
            h = norm(w, f"{at}.out_layers.0", h + e, 32, 1e-5)
        h = conv(w, f"{at}.out_layers.3", silu(h))
        x = resize(x)
        return h + (conv(w, f"{at}.skip_connection", x) if f"{at}.skip_connection.weight" in w else x)

    def _attended(self, w: Weights, at: str, x: Tensor) -> Tensor:
        flat = x.reshape(*x.shape[:2], -1)
        n = norm(w, f"{at}.norm", flat, 32, 1e-5)
        qkv = torch.einsum("oi,bin->bon", w[f"{at}.qkv.weight"][..., 0], n) + w[f"{at}.qkv.bias"][:, None]
        heads = self.heads or x.shape[1] // self.head
        width = x.shape[1] // heads
        out = []
        for h in range(heads):
            if self.new_order:
                q, k, v = (qkv[:, p * x.shape[1] + h * width :][:, :width] for p in range(3))
            else:
                q, k, v = (qkv[:, (3 * h + p) * width :][:, :width] for p in range(3))
            out.append(attend(q, k, v))
        mixed = torch.einsum("oi,bin->bon", w[f"{at}.proj_out.weight"][..., 0], torch.cat(out, 1))
        return x + (mixed + w[f"{at}.proj_out.bias"][:, None]).reshape(x.shape)


MODELS = {
    "like ffhq-256": Model(),
    "like imagenet-256": Model(mult=(1, 2), blocks=2, attention=(1, 2), colours=1),
    "no resblock_updown": Model(scale_shift=False, updown=False, learned=False, mult=(1, 2)),
    "heads, new order": Model(head=0, heads=4, new_order=True, blocks=3, mult=(1, 1)),
}


def options(model: Model) -> dict[str, Any]:
    heads: dict[str, Any] = {"num_heads": model.heads} if model.heads else {"num_head_channels": model.head}
    return heads | ({"new_attention_order": True} if model.new_order else {})


def alpha_bar() -> Tensor:
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", list(MODELS))
def test_same_function_as_the_transcription(name: str, suffix: str, tmp_path: Path) -> None:
    model = MODELS[name]
    weights = model.make()
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        from safetensors.torch import save_file

        save_file(weights, path)
    prior = invsolve.load_prior(path, self_test=False, **options(model))
    assert prior.event_shape == (model.colours, None, None)
    x = torch.randn(2, model.colours, 16, 24, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([37.0, 911.0])
    with torch.no_grad():
        assert error(prior.net(x, t), model.run(weights, x, t)) < 1e-5
        # D at the sigmas of two timesteps: x0 of the DDPM formula, from the first channels.
        bar = alpha_bar()[t.long()].float().view(-1, 1, 1, 1)
        sigma = ((1 - bar) / bar).sqrt()
        eps = model.run(weights, x, t)[:, : model.colours]
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        assert error(prior.denoise(x / bar.sqrt(), sigma.flatten()), x0) < 1e-5


def test_conformance_and_odd_sizes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {f"module.{n}": v for n, v in MODELS["like ffhq-256"].make(gain=0.1).items()}}, path)
    prior = invsolve.load_prior("adm", path=str(path), num_head_channels=16, self_test=False)
    report = check_prior(prior, (3, 13, 18))
    assert report, str(report)
    assert prior.sigma_min == pytest.approx(0.01, rel=1e-3)
    assert prior.sigma_max == pytest.approx(157.4, rel=1e-3)


def test_side_file_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    model = Model(learned=False)
    weights = model.make()
    torch.save(weights, path)
    side = {
        "format": "adm",
        "parametrisation": "flow-to-data",
        "num_head_channels": 16,
        "data_range": [0, 400],
        "unit": "HU",
    }
    path.with_suffix(".json").write_text(json.dumps(side))
    prior = invsolve.load_prior(path, self_test=False)
    assert (prior.data_range, prior.unit) == ((0.0, 400.0), "HU")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.25, 0.9])
    s = ((1 - t) / t).view(-1, 1, 1, 1)
    with torch.no_grad():
        wanted = x * t.view(-1, 1, 1, 1) + (1 - t.view(-1, 1, 1, 1)) * model.run(weights, x * t.view(-1, 1, 1, 1), t)
        assert error(prior.denoise(x, s.flatten()), wanted) < 1e-5


def test_a_class_adds_its_row_to_the_embedding(tmp_path: Path) -> None:
    model, path = Model(), tmp_path / "model.pt"
    weights = model.make()
    rows = torch.randn(6, len(weights["time_embed.2.bias"]), generator=torch.Generator().manual_seed(3))
    torch.save(weights | {"label_emb.weight": rows}, path)
    prior = invsolve.load_prior(path, self_test=False, num_head_channels=model.head, class_label=4)
    x, sigma = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.4, 2.0])
    time = prior.coordinates.schedule.time(sigma).float()
    inside = x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()
    # The label is added after the second layer, as its bias is.
    told = weights | {"time_embed.2.bias": weights["time_embed.2.bias"] + rows[4]}
    with torch.no_grad():
        wanted = x - sigma.view(-1, 1, 1, 1) * model.run(told, inside, time)[:, :3]
        assert error(prior.denoise(x, sigma), wanted) < 1e-5
    with pytest.raises(UserError, match="from 0 to 5, got 6"):
        invsolve.load_prior(path, self_test=False, num_head_channels=model.head, class_label=6)


def spoilt(change: str) -> Weights:
    weights = Model().make()
    if change == "class":
        weights["label_emb.weight"] = torch.zeros(10, 128)
    elif change == "super-resolution":
        weights["input_blocks.0.0.weight"] = torch.zeros(32, 6, 3, 3)
    elif change == "latent":
        return {f"model.diffusion_model.{n}": v for n, v in weights.items()}
    elif change == "left over":
        weights["surprise.weight"] = torch.zeros(1)
    elif change == "incomplete":
        del weights["output_blocks.0.0.out_layers.3.bias"]
    elif change == "heads":
        pass
    return weights


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("class", "class-conditional"),
        ("super-resolution", "super-resolution"),
        ("latent", "latent"),
        ("left over", "1 left over, first 'surprise.weight'"),
        ("incomplete", "1 missing, first 'output_blocks.0.0.out_layers.3.bias'"),
        ("heads", "give num_head_channels="),
        ("preset", "not the model of preset 'ffhq-256': channels 32 instead of 128"),
    ],
)
def test_what_is_not_read_gets_one_line(change: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(spoilt(change), path)
    given: dict[str, Any] = {} if change == "heads" else {"num_head_channels": 16}
    if change == "preset":
        given["preset"] = "ffhq-256"
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(path, **given)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_sizes_are_recognised() -> None:
    """The layouts of the two published models, without their weights: only names and shapes are made."""
    from invsolve.plugins.priors.adm import PRESETS
    from invsolve.plugins.priors.nets.adm_unet import AdmUNet

    published = {
        "ffhq-256": Model(channels=128, mult=(1, 1, 2, 2, 4, 4), blocks=1, attention=(16,), head=64),
        "imagenet-256": Model(channels=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32), head=64),
    }
    for name, model in published.items():
        with torch.device("meta"):
            weights = model_on_meta(model)
            net = AdmUNet(weights)
        assert {n: v.shape for n, v in net.state_dict().items()} == {n: v.shape for n, v in weights.items()}
        assert (net.width, net.blocks_per_level, net.levels, net.attention_at) == PRESETS[name]


def model_on_meta(model: Model) -> Weights:
    class Shapes(Maker):
        def put(self, name: str, *shape: int, gain: float = 1.0) -> None:
            self.weights[name] = torch.empty(shape, device="meta")

        def norm(self, name: str, channels: int) -> None:
            self.put(f"{name}.weight", channels)
            self.put(f"{name}.bias", channels)

    from unittest import mock

    with mock.patch(f"{__name__}.Maker", Shapes):
        return model.make()
