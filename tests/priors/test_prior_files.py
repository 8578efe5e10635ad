"""Network priors: the file format, the bundled prior, and that nothing loaded runs code."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import invsolve
from invsolve.plugins.priors.unet import HEADER, UNetPrior, make_network, read_header, save
from invsolve.testing import check_prior
from tests.support.types import narrow

CONFIG = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}
ARCHITECTURE = {"class": "UNet2DModel", "config": CONFIG}
HEADER_FACTS = {
    "format": 1,
    "architecture": ARCHITECTURE,
    "parametrisation": "edm",
    "sigma_data": 0.5,
    "noise_label_scale": 250.0,
    "sigma_min": 0.01,
    "sigma_max": 30.0,
    "event_shape": [1, None, None],
    "data_range": [-1000.0, 2000.0],
    "unit": "HU",
    "source": "random weights",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save(path, make_network(ARCHITECTURE).state_dict(), HEADER_FACTS, torch.float32)
    return path


def test_a_file_goes_round(path: Path, tmp_path: Path) -> None:
    prior = invsolve.load_prior(path)
    assert prior.unit == "HU"
    assert prior.data_range == (-1000.0, 2000.0)
    assert (prior.sigma_min, prior.sigma_max) == (0.01, 30.0)
    again = tmp_path / "again.safetensors"
    save(again, prior.network.state_dict(), narrow(dict, read_header(path)), torch.float32)
    x, sigma = torch.randn(2, 1, 17, 22), torch.tensor(0.4)
    torch.testing.assert_close(invsolve.load_prior(again).denoise(x, sigma), prior.denoise(x, sigma))
    assert invsolve.load_prior(again).state_dict().keys() == prior.state_dict().keys()
    report = check_prior(prior)
    assert report, report


def test_any_size_goes_in_and_comes_out(path: Path) -> None:
    prior = invsolve.load_prior(path)
    for size in ((5, 7), (16, 16), (31, 18)):
        assert prior.denoise(torch.randn(1, 1, *size), torch.tensor(1.0)).shape == (1, 1, *size)


def test_fingerprints_tell_weights_apart(path: Path, tmp_path: Path) -> None:
    prior = invsolve.load_prior(path)
    weights = prior.network.state_dict()
    weights["conv_in.bias"] = weights["conv_in.bias"] + 1e-3
    other = path.with_name("other.safetensors")
    save(other, weights, HEADER_FACTS, torch.float32)
    assert invsolve.load_prior(other).fingerprint() != prior.fingerprint()
    assert invsolve.load_prior(path).fingerprint() == prior.fingerprint()


def test_bad_files_are_one_line(path: Path, tmp_path: Path) -> None:
    headers = {
        "strange.safetensors": (HEADER_FACTS | {"parametrisation": "zeta"}, "zeta"),
        "misfit.safetensors": (
            HEADER_FACTS
            | {"architecture": {"class": "UNet2DModel", "config": CONFIG | {"block_out_channels": [8, 12]}}},
            "do not fit",
        ),
    }
    weights = make_network(ARCHITECTURE).state_dict()
    for name, (header, text) in headers.items():
        save(tmp_path / name, weights, header, torch.float32)
        with pytest.raises(invsolve.UserError, match=text) as caught:
            invsolve.load_prior(tmp_path / name)
        assert "\n" not in str(caught.value)
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("plain.safetensors", "broken.safetensors", "text.safetensors"):
        with pytest.raises(invsolve.UserError, match="no checkpoint"):
            invsolve.load_prior(tmp_path / name)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists(), "the trap must work, or the test proves nothing"
    marker.unlink()
    for name in ("net.pkl", "net.pt", "net.ckpt", "net.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(marker)))
        with pytest.raises(invsolve.UserError):
            invsolve.load_prior(tmp_path / name)
    assert not marker.exists()


BUNDLED = ("ct-128", "mr-128", "mr-complex-128", "natural")


@pytest.mark.parametrize("name", ["ct-128", "natural"])
def test_a_bundled_prior_denoises_the_phantom(name: str) -> None:
    from invsolve.datasets import phantoms

    prior = invsolve.load_prior(name)
    clean = 2 * phantoms.render(phantoms.thorax(), 128)[None] - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.1, 0.3, 1.0):
        with torch.no_grad():
            estimate = prior.denoise(clean + sigma * noise, torch.tensor(sigma))
        error = float((estimate - clean).square().mean().sqrt())
        assert error < 0.45 * sigma


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_prior_says_where_it_comes_from(name: str) -> None:
    prior = invsolve.load_prior(name)
    assert isinstance(prior, UNetPrior)
    training = json.loads(json.dumps(prior.header))["training"]
    assert training["command"].startswith("invsolve train")
    # No patient and no photograph is on both sides of the split.
    assert training["data"]["split"]["held_out_groups"]
    assert prior.error_curve is not None
    assert 0 < prior.error(0.1) < 0.1**2
    assert HEADER == "invsolve_prior"


def test_the_bundled_priors_are_small() -> None:
    weights = Path(invsolve.__file__).parents[1] / "plugins" / "priors" / "weights"
    if not weights.exists():
        pytest.skip("the bundled weights are elsewhere")
    assert {f.stem for f in weights.glob("*.safetensors")} == set(BUNDLED)
    assert sum(f.stat().st_size for f in weights.iterdir()) <= 40e6
