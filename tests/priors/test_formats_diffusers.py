"""diffusers folders: D against the arithmetic of diffusers' own schedulers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import UserError
from invsolve.testing import check_prior
from tests.support.functional import error

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {
    "sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip


def network(**changes: Any) -> Any:
    torch.manual_seed(0)
    net: Any = diffusers.UNet2DModel(**SMALL | changes)
    with torch.no_grad():
        net.conv_out.weight *= 0.3
    return net.eval()


def folder(tmp_path: Path, scheduler: Any, net: Any = None, sub: str = "unet", **save: Any) -> Path:
    net = net or network()
    net.save_pretrained(tmp_path / sub, **save)
    if scheduler is not None:
        scheduler.save_pretrained(tmp_path / "scheduler" if sub else tmp_path)
    return tmp_path


def load(path: Path, **given: Any) -> Any:
    return invsolve.load_prior(path, self_test=False, **given)


def x_t(channels: int = 1) -> Tensor:
    return torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_ddpm_is_the_x0_of_the_scheduler(kind: str, betas: str, prediction: str, tmp_path: Path) -> None:
    if (kind, betas) == ("DDIMScheduler", "sigmoid"):
        pytest.skip("diffusers has no such scheduler")
    scheduler = getattr(diffusers, kind)(beta_schedule=betas, prediction_type=prediction, clip_sample=False)
    net = network()
    prior = load(folder(tmp_path, scheduler, net))
    exact = torch.from_numpy(prior.coordinates.schedule.alpha_bar)
    torch.testing.assert_close(exact.float(), scheduler.alphas_cumprod[: len(exact)], rtol=1e-4, atol=1e-7)
    for t in (0, 7, 500, 990):
        # The scheduler's own alpha_bar is rounded, and 1 - alpha_bar at t = 0 has three digits left of it.
        scheduler.alphas_cumprod[t] = bar = exact[t].float()
        sigma = ((1 - exact[t]) / exact[t]).sqrt()
        with torch.no_grad():
            out = net(x_t(), t).sample
            wanted = scheduler.step(out, t, x_t()).pred_original_sample if kind == "DDPMScheduler" else None
            if wanted is None:
                scheduler.set_timesteps(1000)
                wanted = scheduler.step(out, t, x_t()).pred_original_sample
            estimate = prior.denoise(x_t() / bar.sqrt(), sigma.float())
        assert error(estimate, wanted) < 1e-5, t


def test_zero_terminal_signal_and_trained_betas(tmp_path: Path) -> None:
    scheduler: Any = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False
    )
    prior = load(folder(tmp_path / "a", scheduler))
    bars = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt()
    assert prior.sigma_max < 1e4
    times = prior.coordinates.schedule.time(bars[[3, 400, 900]])
    torch.testing.assert_close(times, torch.tensor([3.0, 400.0, 900.0], dtype=torch.float64), rtol=1e-4, atol=1e-2)
    given = diffusers.DDPMScheduler(trained_betas=[0.01, 0.02, 0.03], num_train_timesteps=3)
    prior = load(folder(tmp_path / "b", given))
    assert prior.sigma_max == pytest.approx(float(((1 - 0.99 * 0.98 * 0.97) / (0.99 * 0.98 * 0.97)) ** 0.5))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_the_preconditioning_of_the_scheduler(prediction: str, tmp_path: Path) -> None:
    scheduler: Any = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=0.7)
    net = network()
    prior = load(folder(tmp_path, scheduler, net))
    assert (prior.sigma_min, prior.sigma_max) == (0.002, 80.0)
    for sigma in (torch.tensor(0.03), torch.tensor(4.0)):
        with torch.no_grad():
            out = net(scheduler.precondition_inputs(x_t(), sigma), scheduler.precondition_noise(sigma)).sample
            wanted = scheduler.precondition_outputs(x_t(), out, sigma)
            assert error(prior.denoise(x_t(), sigma), wanted) < 1e-5


def test_flow_matching_steps_to_d(tmp_path: Path) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler()
    net = network()
    prior = load(folder(tmp_path, scheduler, net))
    scheduler.set_timesteps(10)
    for k in (2, 7):
        t = scheduler.timesteps[k]
        share = float(scheduler.sigmas[k])
        assert share == pytest.approx(float(t) / 1000)
        with torch.no_grad():
            velocity = net(x_t(), t).sample
            # A step all the way to no noise ends at D.
            fine: Any = diffusers.FlowMatchEulerDiscreteScheduler()
            fine.set_timesteps(sigmas=[share])
            wanted = fine.step(velocity, fine.timesteps[0], x_t()).prev_sample
            estimate = prior.denoise(x_t() / (1 - share), torch.tensor(share / (1 - share)))
        assert error(estimate, wanted) < 1e-5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, of numpy 2
def test_euler_in_sigma_agrees(tmp_path: Path) -> None:
    """EulerDiscrete works in sigma as we do: its own scaling of the input and its own x0."""
    scheduler: Any = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    net = network()
    prior = load(folder(tmp_path, scheduler, net))
    scheduler.set_timesteps(20)
    t = scheduler.timesteps[6]
    sigma = scheduler.sigmas[6]
    with torch.no_grad():
        out = net(scheduler.scale_model_input(x_t(), t), t).sample
        wanted = scheduler.step(out, t, x_t()).pred_original_sample
        assert error(prior.denoise(x_t(), sigma), wanted) < 1e-4


def test_score_sde_ve_in_a_diffusers_folder(tmp_path: Path) -> None:
    net = network(time_embedding_type="fourier", in_channels=1)
    prior = load(folder(tmp_path, diffusers.ScoreSdeVeScheduler(sigma_max=300.0), net))
    sigma = torch.tensor([3.0])
    with torch.no_grad():
        wanted = x_t() + sigma**2 * net(x_t(), sigma).sample
        estimate = (prior.denoise(2 * x_t() - 1, 2 * sigma) + 1) / 2
    assert error(estimate, wanted) < 1e-5
    assert prior.sigma_max == 600.0


def test_learned_variances_shards_root_layout_and_old_names(tmp_path: Path) -> None:
    net = network(out_channels=2)
    scheduler: Any = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    prior = load(folder(tmp_path / "shards", scheduler, net, max_shard_size="5KB"))
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 1
    root = load(folder(tmp_path / "root", scheduler, net, sub=""))
    sigma = torch.tensor(0.5)
    with torch.no_grad():
        torch.testing.assert_close(root.denoise(x_t(), sigma), prior.denoise(x_t(), sigma))
        first = net(x_t() / (1 + sigma**2).sqrt(), prior.coordinates.schedule.time(sigma[None]).float()).sample[:, :1]
        assert error(prior.denoise(x_t(), sigma), x_t() - sigma * first) < 1e-5
    from safetensors.torch import load_file, save_file

    file = tmp_path / "root" / "diffusion_pytorch_model.safetensors"
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in load_file(file).items():
        for a, b in new.items():
            name = name.replace(f".{a}.", f".{b}.")
        old[name] = value
    save_file(old, file)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "root").denoise(x_t(), sigma), root.denoise(x_t(), sigma))


def test_a_class_is_what_diffusers_is_told(tmp_path: Path) -> None:
    net, scheduler = network(num_class_embeds=5), diffusers.DDPMScheduler(clip_sample=False)
    path = folder(tmp_path, scheduler, net)
    sigma = torch.tensor(0.7)
    for label in (0, 3):
        prior = load(path, class_label=label)
        time = prior.coordinates.schedule.time(sigma[None]).float()
        with torch.no_grad():
            noise = net(x_t() / (1 + sigma**2).sqrt(), time, class_labels=torch.tensor([label])).sample
            assert error(prior.denoise(x_t(), sigma), x_t() - sigma * noise) < 1e-5
    for given, text in (
        (None, "give class_label=, from 0 to 4"),
        (5, "must be from 0 to 4"),
        (-1, "must be from 0 to 4"),
    ):
        with pytest.raises(UserError, match=text):
            load(path, class_label=given)
    with pytest.raises(UserError, match="knows no classes"):
        load(folder(tmp_path / "plain", scheduler), class_label=0)


def test_conformance(tmp_path: Path) -> None:
    prior = load(folder(tmp_path, diffusers.DDPMScheduler()), data_range=(0.0, 255.0))
    assert prior.data_range == (0.0, 255.0)
    report = check_prior(prior, (1, 15, 22))
    assert report, str(report)


def test_without_scheduler_the_parametrisation_must_be_given(tmp_path: Path) -> None:
    path = folder(tmp_path, None)
    with pytest.raises(UserError, match="give parametrisation="):
        load(path)
    prior = load(path, parametrisation="v", schedule="cosine")
    assert str(prior.coordinates) == "'v' (schedule 'cosine')"


@pytest.mark.slow
def test_an_untrained_network_is_warned_of(tmp_path: Path) -> None:
    path = folder(tmp_path, diffusers.DDPMScheduler())
    with pytest.warns(invsolve.networks.selftest.PriorWarning, match="does not denoise"):
        invsolve.load_prior(path)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("conditional", "only 'UNet2DModel' is read"),
        ("classes", "only classes of a table"),
        ("latent", "latent or text-conditional"),
        ("bin", "safe_serialization=True"),
        ("nothing", "has no *.safetensors"),
        ("prediction", "prediction_type 'noise' is not read"),
        ("betas", "beta_schedule 'laplace' is not read"),
        ("kind", "has no beta_schedule"),
        ("json", "no readable JSON"),
        ("setting", "unknown settings depth"),
        ("weights", "do not fit"),
    ],
)
def test_what_is_not_read_gets_one_line(change: str, text: str, tmp_path: Path) -> None:
    path = folder(tmp_path, diffusers.DDPMScheduler())
    config, scheduler = path / "unet" / "config.json", path / "scheduler" / "scheduler_config.json"
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    {
        "conditional": lambda: edit(config, _class_name="UNet2DConditionModel"),
        "classes": lambda: edit(config, class_embed_type="timestep"),
        "latent": lambda: (path / "vae").mkdir(),
        "bin": lambda: weights.rename(weights.with_suffix(".bin")),
        "nothing": lambda: weights.unlink(),
        "prediction": lambda: edit(scheduler, prediction_type="noise"),
        "betas": lambda: edit(scheduler, beta_schedule="laplace"),
        "kind": lambda: scheduler.write_text('{"_class_name": "Strange"}'),
        "json": lambda: config.write_text("{"),
        "setting": lambda: edit(config, depth=3),
        "weights": lambda: edit(config, block_out_channels=[8, 8]),
    }[change]()
    with pytest.raises(UserError) as caught:
        load(path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
