"""Weights and their side files, read without running anything from them: safetensors, and torch files of tensors alone."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invsolve.errors import UserError, suggestion

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".th", ".tar")
#: What a file without names in reach is scanned for, and how far.
_SCAN = 16 << 20
#: Where trainers put the weights in a checkpoint, best first.
_SHELVES = (
    "ema_state_dict",
    "params_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "params",
    "model",
    "net",
    "ema",
)


def refuse_pickle(path: Path, reason: str) -> UserError:
    """The one line with which a file that only pickle could read is turned away."""
    return UserError(
        f"{str(path)!r} is refused: {reason}, and reading it would run code from the file; where you trust it, save the "
        "weights alone, torch.save(model.state_dict(), 'weights.pt'), with the script in docs/priors.md"
    )


def holds_names(path: Path, *names: str) -> bool:
    """Whether a weights file has all these names in it. Reads its table of contents as bytes; unpickles nothing."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                keys = list(file.keys())
        except (SafetensorError, OSError):
            return False
        return all(any(name in key for key in keys) for name in names)
    if path.suffix not in (*TORCH_SUFFIXES, ".pkl") or not path.is_file():
        return False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
                if inside is None:
                    return False
                with archive.open(inside) as stream:
                    content = stream.read(_SCAN)
        else:
            with path.open("rb") as stream:
                content = stream.read(_SCAN)
    except (OSError, zipfile.BadZipFile):
        return False
    return all(name.encode() in content for name in names)


def read_checkpoint(path: Path) -> Any:
    """What a torch file holds: tensors, numbers, text, and dictionaries and lists of them. Nothing else is let in.

    Raises:
        UserError: the file is missing or broken, or holds anything that only pickle could rebuild.
    """
    if not path.is_file():
        raise UserError(f"no such weights file {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{str(path)!r} is no readable safetensors file: {_first_line(error)}") from None
    if path.suffix == ".pkl":
        raise refuse_pickle(path, "a .pkl holds pickled objects")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise refuse_pickle(path, "it holds more than tensors, numbers and text") from None
    except Exception as error:  # torch raises many kinds on damaged files
        if "TorchScript" in str(error):
            raise refuse_pickle(path, "it is a TorchScript program") from None
        raise UserError(f"{str(path)!r} is no readable torch file: {_first_line(error)}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, name -> tensor, in single precision, without a trainer's or a wrapper's prefix `module.`.

    Raises:
        UserError: as `read_checkpoint`, or no state dict is in it.
    """
    return plain_weights(find_state_dict(read_checkpoint(path), path))


def find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, or the one in a trainer's checkpoint."""
    if isinstance(content, Mapping):
        if content and all(isinstance(v, Tensor) for v in content.values()):
            return dict(content)
        for shelf in _SHELVES:
            inner = content.get(shelf)
            if isinstance(inner, Mapping) and inner and all(isinstance(v, Tensor) for v in inner.values()):
                return dict(inner)
    content_text = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{str(path)!r} holds no state dict (name -> tensor), nor under {', '.join(_SHELVES)}; found {content_text}"
    )


def plain_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Single precision, and no `module.` in front of the names."""
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in weights.items()
    }


def fill(net: nn.Module, weights: Mapping[str, Tensor], path: Path, ignore: Iterable[str] = ()) -> None:
    """Load a state dict, all of it, into the network that was made for it.

    Raises:
        UserError: names missing or left over, or shapes that do not fit; the first of them.
    """
    wanted = {name: value for name, value in weights.items() if not any(name.startswith(i) for i in ignore)}
    own = net.state_dict()
    missing = [n for n in own if n not in wanted]
    extra = [n for n in wanted if n not in own]
    wrong = [n for n in own if n in wanted and own[n].shape != wanted[n].shape]
    if missing or extra or wrong:
        parts = [f"{len(v)} {k}, first {v[0]!r}" for k, v in (("missing", missing), ("left over", extra)) if v]
        if wrong:
            parts.append(f"{wrong[0]!r} is {tuple(wanted[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}")
        raise UserError(f"{str(path)!r}: the weights do not fit the network of this format: {'; '.join(parts)}")
    net.load_state_dict(wanted)
    net.requires_grad_(False).eval()


def read_side_file(path: Path, config: str | None, known: Iterable[str], format_: str) -> dict[str, Any]:
    """The JSON file that says about a checkpoint what its weights do not: `config`, or the one of the same name beside it.

    Args:
        path: the checkpoint.
        config: the side file; None for the checkpoint's name with .json, if there is one.
        known: the keys that may be in it.
        format_: name of the format, which the file's key "format" must repeat when it is there.

    Raises:
        UserError: no such file, no JSON, or an unknown key.
    """
    file = Path(config) if config else path.with_suffix(".json")
    if not file.is_file():
        if config:
            raise UserError(f"no such side file {config!r}")
        return {}
    content = read_json(file)
    if content.pop("format", format_) != format_:
        raise UserError(
            f"{str(file)!r} describes another format than {format_!r}; name the prior's format in load_prior"
        )
    names = list(known)
    for key in content:
        if key not in names:
            raise UserError(f"{str(file)!r}: unknown key {key!r}.{suggestion(key, names)}")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        UserError: it does not.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is no readable JSON file: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{str(file)!r} must hold one JSON object, got {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
