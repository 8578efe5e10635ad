"""Priors by name from the Hugging Face hub: the copy in the hub's own cache; the network is used only when asked for."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from invsolve import registry
from invsolve.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

PREFIX = "hf:"
#: Copies of the weights that are not the ones to read.
_OTHER_WEIGHTS = re.compile(r"\.(fp16|bf16|non_ema)\b")
_PART = r"[0-9A-Za-z](?:[0-9A-Za-z._-]*[0-9A-Za-z_-])?"
_NAME = re.compile(rf"hf:(?P<repository>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?")

_log = logging.getLogger("invsolve")


class Place(NamedTuple):
    """One revision of one repository of the hub."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}@{self.revision}"


def is_hub_name(name: str) -> bool:
    """Whether a prior's name speaks of the hub."""
    return name.startswith(PREFIX)


def place(name: str, revision: str | None = None) -> Place:
    """Read "hf:owner/name" or "hf:owner/name@revision".

    Args:
        revision: branch, tag or commit, where the name has none; default the branch "main".

    Raises:
        UserError: another form, or two revisions.
    """
    parts = _NAME.fullmatch(name)
    if parts is None or not _NAME.fullmatch(f"hf:a/b@{revision or 'main'}"):
        given = name if revision is None else f"{name}@{revision}"
        raise UserError(f"prior {given!r}: written as hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    if revision is not None and parts["revision"] not in (None, revision):
        raise UserError(f"prior {name!r}: revision {revision!r} is given beside it; give one of the two")
    return Place(parts["repository"], parts["revision"] or revision or "main")


def cached(where: Place) -> Path:
    """The folder (diffusers) or file (invsolve's own) of a prior in the hub's cache; never uses the network.

    Raises:
        UserError: it is not there; the line says how to fetch it.
    """
    return _readable(_snapshot(where))


def pinned(where: Place) -> Place:
    """The same place with the commit for its revision, as the cache has it.

    Raises:
        UserError: as `cached`.
    """
    return Place(where.repository, _snapshot(where).name)


def _snapshot(where: Place) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                where.repository, revision=where.revision, cache_dir=constants.HF_HUB_CACHE, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"prior '{where}' is not in the cache {constants.HF_HUB_CACHE!r}, and nothing is downloaded unasked; "
            f"fetch it once: invsolve prior fetch {where}, or load_prior(..., download=True)"
        ) from None


def fetch(where: Place, say: Callable[[str], None] = _log.info) -> Place:
    """Download a prior into the hub's cache, hash by hash, and return its pinned place, whose revision is a commit.

    Only safetensors and configuration files are fetched. What is in the cache already is not fetched again.

    Args:
        say: told the commit, the size, and the hash of each file of weights.

    Raises:
        UserError: no such repository or revision, no access, no network, a model that is not read, or a damaged download.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    with _errors_in_one_line(where):
        info = api.model_info(where.repository, revision=where.revision, files_metadata=True, timeout=30)
    exact = Place(where.repository, str(info.sha))
    chosen = _chosen(info, where)
    size = sum(file.size or 0 for file in chosen)
    say(f"{exact}: {len(chosen)} files, {size / 1e6:.1f} MB, into {constants.HF_HUB_CACHE}")
    for file in chosen:
        with _errors_in_one_line(where):
            path = _download(api, exact, file.rfilename)
        if file.lfs is not None:
            digest = _sha256(path)
            if digest != file.lfs.sha256:
                path.resolve().unlink(missing_ok=True)
                raise UserError(f"prior '{where}': {file.rfilename} arrived damaged (sha256 {digest}); fetch it again")
            say(f"{file.rfilename}: sha256 {digest}")
    if where != exact:
        # So that the cache knows the branch or tag as well; the file itself is there.
        with _errors_in_one_line(where):
            _download(api, where, chosen[0].rfilename)
    return exact


def _download(api: HfApi, where: Place, name: str) -> Path:
    from huggingface_hub import constants

    return Path(api.hf_hub_download(where.repository, name, revision=where.revision, cache_dir=constants.HF_HUB_CACHE))


def _chosen(info: ModelInfo, where: Place) -> list[RepoSibling]:
    names = [file.rfilename for file in info.siblings or []]
    told = sorted({name.split("/")[0] for name in names} & {"text_encoder", "transformer"})
    if told:
        raise UserError(
            f"prior '{where}' is a text-conditional pipeline (it has {told[0]}/), which is not read; name another model"
        )
    # What registered formats read, and nothing else; nothing that runs code is among it.
    patterns = [cls.published for cls in registry.available("prior").values() if cls.published]  # type: ignore[attr-defined]
    chosen = [
        file
        for file in info.siblings or []
        if any(re.fullmatch(pattern, file.rfilename) for pattern in patterns)
        and not _OTHER_WEIGHTS.search(file.rfilename)
    ]
    if not any(file.rfilename.endswith(".safetensors") for file in chosen):
        pickled = any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in names)
        why = "its weights are pickles, which run code when they are read" if pickled else "no weights are in it"
        raise UserError(f"prior '{where}' has no *.safetensors: {why}; ask its owner for safetensors")
    return chosen


def _readable(folder: Path) -> Path:
    """The folder, or the one file in it where that is a prior by itself."""
    weights = sorted(folder.glob("*.safetensors"))
    described = any(cls.opens(folder) for cls in registry.available("prior").values())  # type: ignore[attr-defined]
    return weights[0] if len(weights) == 1 and not described else folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _errors_in_one_line(where: Place) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"prior '{where}': its owner asks for a login; accept the terms there and run hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"prior '{where}': the hub has no such model, or not for you; look for a slip in the name"
        ) from None
    except errors.LocalEntryNotFoundError:
        # What the client makes of a connection that broke.
        raise UserError(
            f"prior '{where}': the hub cannot be reached; fetch it again, what has arrived is kept"
        ) from None
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError):
        raise UserError(f"prior '{where}': the model has no revision {where.revision!r}") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        raise UserError(f"prior '{where}': the hub cannot be reached ({_first_line(error)})") from None
    except Exception as error:
        # The hub's client passes on whatever its transport raises, whose classes change with its versions.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "httpx2", "requests", "urllib3"):
            raise
        raise UserError(f"prior '{where}': the hub cannot be reached ({_first_line(error)})") from None
