"""Priors from the hub: nothing unasked, only safe files, pinned and hashed; against a server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import invsolve
from invsolve import UserError

diffusers = pytest.importorskip("diffusers")
hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """The part of the hub's interface that its client uses to list and fetch a model."""

    files: dict[str, bytes]
    served: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def listing(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            entry: dict = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if name.endswith((".safetensors", ".bin")):
                entry["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
        return {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                stand_in.requests.append(f"{self.command} {path}")
                parts = path.strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    if parts[2:4] != ["owner", "name"]:
                        return self.reply(b"{}", 404, X_Error_Code="RepoNotFound")
                    if parts[4:] not in (["revision", "main"], ["revision", COMMIT]):
                        return self.reply(b"{}", 404, X_Error_Code="RevisionNotFound")
                    return self.reply(json.dumps(stand_in.listing()).encode(), Content_Type="application/json")
                name = "/".join(parts[4:])
                if name not in stand_in.files:
                    return self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                content = stand_in.files[name]
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                return self.reply(stand_in.served.get(name, content), X_Repo_Commit=COMMIT, ETag=etag)

            do_HEAD = do_GET

        return Handler


def model_files(tmp_path: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    net.save_pretrained(tmp_path / "model" / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    root = tmp_path / "model"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn(
        model_files(tmp_path) | {"README.md": b"# a model", "evil.py": b"boom", "unet/weights.bin": b"pickle"}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), stand_in.handler())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield stand_in
    server.shutdown()
    server.server_close()
    thread.join()


def in_cache(tmp_path: Path) -> set[str]:
    root = tmp_path / "cache" / "models--owner--name" / "snapshots"
    return {str(p.relative_to(root / COMMIT)) for p in root.rglob("*") if p.is_file()}


def test_nothing_is_downloaded_unasked(stand_in: StandIn) -> None:
    with pytest.raises(UserError, match=r"not in the cache.*invsolve prior fetch hf:owner/name@main") as caught:
        invsolve.load_prior("hf:owner/name")
    assert "\n" not in str(caught.value)
    assert stand_in.requests == []


def test_what_is_fetched_is_the_folders_prior_and_stays_at_hand_offline(stand_in: StandIn, tmp_path: Path) -> None:
    fetched = invsolve.load_prior("hf:owner/name", download=True, self_test=False)
    stand_in.requests.clear()
    again = invsolve.load_prior(f"hf:owner/name@{COMMIT}", self_test=False)
    branch = invsolve.load_prior("hf:owner/name", revision="main", self_test=False)
    assert stand_in.requests == []
    folder = invsolve.load_prior(tmp_path / "model", self_test=False)
    x = torch.randn(1, 1, 16, 16)
    for prior in (fetched, again, branch):
        assert prior.source == f"hf:owner/name@{COMMIT}"
        torch.testing.assert_close(prior.denoise(x, torch.tensor(0.5)), folder.denoise(x, torch.tensor(0.5)))


def test_only_weights_and_configurations_are_fetched(stand_in: StandIn, tmp_path: Path) -> None:
    invsolve.load_prior("hf:owner/name", download=True, self_test=False)
    assert in_cache(tmp_path) == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }


def test_command_tells_size_and_hash_and_prints_the_pinned_name(stand_in: StandIn) -> None:
    from invsolve.cli.app import app

    result = CliRunner().invoke(app, ["prior", "fetch", "hf:owner/name"])
    assert result.exit_code == 0, result.output
    weights = stand_in.files["unet/diffusion_pytorch_model.safetensors"]
    assert f"--prior hf:owner/name@{COMMIT}" in result.output
    assert hashlib.sha256(weights).hexdigest() in result.output
    assert "3 files, " in result.output


def test_a_damaged_download_is_refused_and_forgotten(stand_in: StandIn, tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    stand_in.served[name] = stand_in.files[name][:-1] + b"?"
    with pytest.raises(UserError, match="arrived damaged"):
        invsolve.load_prior("hf:owner/name", download=True)
    assert name not in in_cache(tmp_path)
    stand_in.served.clear()
    invsolve.load_prior("hf:owner/name", download=True, self_test=False)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("hf:owner/other", "no such model"),
        ("hf:owner/name@nowhere", "has no revision 'nowhere'"),
        ("hf:owner", "written as hf:OWNER/NAME"),
        ("hf:../../etc/passwd", "written as hf:OWNER/NAME"),
        ("hf:owner/name@../../../x", "written as hf:OWNER/NAME"),
        ("hf:owner/name@a/../b", "written as hf:OWNER/NAME"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, line: str, stand_in: StandIn) -> None:
    with pytest.raises(UserError, match=line) as caught:
        invsolve.load_prior(name, download=True)
    assert "\n" not in str(caught.value)


def test_pickles_and_text_conditional_models_are_refused_before_they_are_fetched(
    stand_in: StandIn, tmp_path: Path
) -> None:
    del stand_in.files["unet/diffusion_pytorch_model.safetensors"]
    with pytest.raises(UserError, match=r"no \*\.safetensors: its weights are pickles"):
        invsolve.load_prior("hf:owner/name", download=True)
    stand_in.files["text_encoder/config.json"] = b"{}"
    with pytest.raises(UserError, match="text-conditional pipeline"):
        invsolve.load_prior("hf:owner/name", download=True)
    assert not (tmp_path / "cache").exists()


def test_no_network_is_one_line(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached") as caught:
        invsolve.load_prior("hf:owner/name", download=True)
    assert "\n" not in str(caught.value)


def test_a_file_takes_no_revision() -> None:
    with pytest.raises(UserError, match="for names of the hub"):
        invsolve.load_prior("ct-128", revision="main")
