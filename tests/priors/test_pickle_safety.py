"""Nothing in a checkpoint runs: real pickles that would leave a mark, in every disguise, through every loader."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import invsolve
from invsolve import UserError, registry

#: Names by which each format knows its files, so that the loader, and not the door, must refuse them.
NAMES = {
    "adm": ["input_blocks.0.0.weight", "time_embed.0.weight"],
    "edm": ["model.map_layer0.weight", "model.dec.16x16_block0.conv0.weight"],
    "score-sde": ["module.all_modules.0.W", "module.all_modules.1.weight"],
    "deepinverse": ["m_head.weight"],
}
FORMATS = [*NAMES, "diffusers", "unet"]


class Mark:
    """When unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


def content(names: list[str], mark: Path) -> dict[str, Any]:
    return {name: torch.zeros(3) for name in names} | {"callbacks": Mark(mark)}


def plain_pickle(path: Path, names: list[str], mark: Path) -> None:
    path.write_bytes(pickle.dumps(content(names, mark)))


def torch_zip(path: Path, names: list[str], mark: Path) -> None:
    torch.save(content(names, mark), path)


def torch_old(path: Path, names: list[str], mark: Path) -> None:
    torch.save(content(names, mark), path, _use_new_zipfile_serialization=False)


def bare_mark(path: Path, names: list[str], mark: Path) -> None:
    torch.save(Mark(mark), path)


WRITERS = [plain_pickle, torch_zip, torch_old, bare_mark]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def deepinv(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library, whose classes take what DeepInverse's do."""

    class DRUNet(nn.Module):
        def __init__(self, in_channels: int = 3, out_channels: int = 3, pretrained: str | None = "download") -> None:
            super().__init__()
            assert pretrained is None
            self.m_head = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x - sigma.view(-1, 1, 1, 1) * self.m_head(x)

    library = types.ModuleType("deepinv")
    library.models = types.SimpleNamespace(DRUNet=DRUNet)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepinv", library)


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_the_mark_works(tmp_path: Path, mark: Path) -> None:
    plain_pickle(tmp_path / "x.pkl", [], mark)
    pickle.loads((tmp_path / "x.pkl").read_bytes())["callbacks"].close()
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's own, on such a file
@pytest.mark.usefixtures("deepinv")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_runs(kind: str, write: Callable[..., None], suffix: str, tmp_path: Path, mark: Path) -> None:
    if kind == "diffusers":
        path = tmp_path / "folder"
        (path / "unet").mkdir(parents=True)
        (path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        name = f"diffusion_pytorch_model{suffix}"
        write(path / "unet" / name, ["conv_in.weight"], mark)
        # Also where the index would have a pickle for a shard.
        (path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"conv_in.weight": name}})
        )
        (path / "scheduler").mkdir()
        (path / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    else:
        path = tmp_path / f"model{suffix}"
        write(path, NAMES.get(kind, []), mark)
        if kind == "score-sde":
            side = {"model": {"nf": 16, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []}}
            path.with_suffix(".json").write_text(json.dumps(side | {"data": {"image_size": 8, "num_channels": 1}}))
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(kind, path=str(path))
    one_line(caught)
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(path)
    one_line(caught)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["adm", "edm", "score-sde"])
def test_refusal_says_the_way_out(kind: str, tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "model.pt"
    torch_zip(path, NAMES[kind], mark)
    if kind == "score-sde":
        side = {"model": {"nf": 16, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []}}
        path.with_suffix(".json").write_text(json.dumps(side | {"data": {"image_size": 8, "num_channels": 1}}))
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(path)
    text = one_line(caught)
    assert "would run code" in text
    assert "state_dict" in text
    assert "docs/priors.md" in text


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")  # torch's own, on such a file
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on such a file
def test_whole_modules_and_scripts_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match="would run code"):
        invsolve.load_prior("adm", path=str(tmp_path / "whole.pt"))
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        invsolve.load_prior("edm", path=str(tmp_path / "script.pt"))


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "noise.pt").write_bytes(b"\x00\x01\x02" * 100)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("archive/other", "text")
    torch.save({"epoch": 3, "note": "no weights"}, tmp_path / "nothing.pt")
    for name in ("empty.pt", "noise.pt", "zip.pt", "nothing.pt", "missing.pt"):
        with pytest.raises(UserError, match=name) as caught:
            invsolve.load_prior("adm", path=str(tmp_path / name))
        one_line(caught)


@pytest.mark.parametrize("name", list(registry.available("prior")))
def test_no_format_opens_what_is_not_its_own(name: str, tmp_path: Path) -> None:
    cls: Any = registry.find("prior", name)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "text.txt").write_text("input_blocks.0.0.weight")
    (tmp_path / "folder").mkdir()
    for file in ("other.pt", "text.txt", "folder", "missing.pt"):
        assert not cls.opens(tmp_path / file)


@pytest.mark.usefixtures("deepinv")
def test_deepinverse_denoiser_works_between_0_and_1(tmp_path: Path) -> None:
    weights = {"m_head.weight": 0.1 * torch.randn(1, 1, 3, 3)}
    path = tmp_path / "drunet.pth"
    torch.save(weights, path)
    prior = invsolve.load_prior("deepinverse", path=str(path), channels=1, self_test=False)
    x, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.4])
    unit = (x + 1) / 2
    wanted = unit - (sigma / 2).view(-1, 1, 1, 1) * torch.conv2d(unit, weights["m_head.weight"], padding=1)
    torch.testing.assert_close(prior.denoise(x, sigma), 2 * wanted - 1)
    assert (prior.sigma_min, prior.sigma_max) == (0.004, 2.0)
    with pytest.raises(UserError, match="no denoiser class 'Strange'"):
        invsolve.load_prior("deepinverse", path=str(path), model="Strange")


def test_deepinverse_itself(tmp_path: Path) -> None:
    deepinv = pytest.importorskip("deepinv")
    net = deepinv.models.DRUNet(in_channels=1, out_channels=1, pretrained=None)
    torch.save(net.state_dict(), tmp_path / "drunet.pth")
    prior = invsolve.load_prior("deepinverse", path=str(tmp_path / "drunet.pth"), channels=1, self_test=False)
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(prior.denoise(2 * x - 1, torch.tensor(0.2)), 2 * net(x, 0.1) - 1)


def test_deepinverse_is_asked_for(tmp_path: Path) -> None:
    try:
        import deepinv  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install deepinv"):
            invsolve.load_prior("deepinverse", path="drunet.pth")
