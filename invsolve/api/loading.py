"""Operators, noises, strategies, policies and priors by name, and priors from checkpoint files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invsolve import registry
from invsolve.api import hub
from invsolve.api.verdicts import verdict
from invsolve.contracts.acquisition import Policy
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior, is_error_curve
from invsolve.contracts.strategy import Strategy
from invsolve.errors import UserError, suggestion
from invsolve.networks import selftest
from invsolve.networks.network_prior import NetworkPrior
from invsolve.registry.parameters import build, parameters
from invsolve.registry.written import read_written


def operator(name: str, /, **parameters_: Any) -> Operator:
    """Make a registered operator, such as `operator("ct", image_size=128, angles=60)`.

    Raises:
        UserError: unknown name or parameter, or a value of the wrong type.
    """
    return build(registry.find("operator", name), "operator", name, parameters_)


def noise(name: str, /, **parameters_: Any) -> Noise:
    """Make a registered noise, such as `noise("gaussian", sigma=0.01)`, or one in the command line's words.

    Args:
        name: a registered name; or, without parameters, NAME:VALUE, such as "gaussian:0.01". Several values are separated by
            commas, in the order of the parameters or as key=value.
        parameters_: of the noise.

    Raises:
        UserError: unknown name or parameter, or a value of the wrong type or out of its range.
    """
    if not parameters_:
        name, parameters_ = read_written("noise", name)
    return build(registry.find("noise", name), "noise", name, parameters_)


class _Registered:
    """Makes what is registered: `make("ct", image_size=128)` an operator, `make.noise("gaussian", sigma=0.01)` a noise.

    What `Layout.open(path, make)` wants.
    """

    def __call__(self, name: str, /, **parameters_: Any) -> Operator:
        """As `operator`."""
        return operator(name, **parameters_)

    def noise(self, name: str, /, **parameters_: Any) -> Noise:
        """As the function `noise`, by name alone."""
        return build(registry.find("noise", name), "noise", name, parameters_)


make = _Registered()


def strategy(name: str, /, **parameters_: Any) -> Strategy:
    """Make a registered strategy, such as `strategy("dps", steps=200)`.

    Raises:
        UserError: unknown name or parameter, or a value of the wrong type.
    """
    return build(registry.find("strategy", name), "strategy", name, parameters_)


def policy(name: str, /, **parameters_: Any) -> Policy:
    """Make a registered policy of acquisition, such as `policy("variable-density", power=2)`, or from the command line's words.

    Args:
        name: a registered name; or, without parameters, NAME:VALUE, such as "variable-density:2".
        parameters_: of the policy.

    Raises:
        UserError: unknown name or parameter, or a value of the wrong type.
    """
    if not parameters_:
        name, parameters_ = read_written("policy", name)
    return build(registry.find("policy", name), "policy", name, parameters_)


def load_prior(
    name: str | Path, *, revision: str | None = None, download: bool = False, self_test: bool = True, **parameters_: Any
) -> Prior:
    """Load a prior by registered name, from a checkpoint file, or from the Hugging Face hub. Never runs code from the file.

    Args:
        name: a registered name, with its parameters, which may be written in it, as "ct-128:gaussian_above=5"; a file or folder
            that a registered format opens; or "hf:owner/name" or "hf:owner/name@revision", read from the hub's cache, as
            `invsolve prior fetch` leaves it.
        revision: with a name of the hub: branch, tag or commit; default the branch "main". A commit pins the weights.
        download: with a name of the hub: fetch it first; without, the network is never used. Commit, size and hashes go to
            the logger "invsolve".
        self_test: let a network of a foreign format denoise reference images first (a second or more), and warn where it
            seems to be read otherwise than it was trained; `invsolve.self_test` tells more. The verdict is kept by the hash of
            weights and reading, in the user's cache.
        parameters_: of the registered prior; with a file, of its format, such as `num_head_channels=32`.

    Raises:
        UserError: neither a known name nor a file that a registered format opens; or a model that is not in the hub's cache.
    """
    if hub.is_hub_name(str(name)):
        where = hub.place(str(name), revision)
        where = hub.fetch(where) if download else where
        prior = _load_prior(hub.cached(where), parameters_)
        prior.source = str(hub.pinned(where))
    elif download or revision is not None:
        raise UserError(f"prior {str(name)!r}: revision= and download= are for names of the hub, hf:OWNER/NAME")
    else:
        prior = _load_prior(name, parameters_)
    if self_test and isinstance(prior, NetworkPrior):
        try:
            good, text = verdict(prior, str(name))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{str(name)!r}: its network cannot be run ({type(error).__name__}: {reason}); it may not be read as it was made"
            ) from error
        if not good:
            warnings.warn(f"{str(name)!r}: {text}", selftest.PriorWarning, stacklevel=2)
    return prior


def _load_prior(name: str | Path, parameters_: dict[str, Any]) -> Prior:
    known = registry.available("prior")
    if str(name) in known or str(name) in registry.aliases("prior"):
        return build(registry.find("prior", str(name)), "prior", str(name), parameters_)
    path = Path(name)
    if str(name).partition(":")[0] in known and not path.exists():
        written, given = read_written("prior", str(name))
        return build(known[written], "prior", written, given | parameters_)
    if not path.exists():
        raise UserError(f"unknown prior {str(name)!r}, and no file of that name.{suggestion(str(name), known)}")
    for kind, cls in known.items():
        if cls.opens(path):  # type: ignore[attr-defined]
            return _with_error_curve(_from_file(cls, kind, path, parameters_), path)
    raise UserError(
        f"{str(name)!r} is no checkpoint that a registered prior opens; invsolve's own are .safetensors with a header. "
        "Pickled modules (.pkl, whole .pt objects) are refused because loading them runs code: save the state dict instead "
        "(docs/priors.md says how, and which other formats are read)"
    )


def _from_file(cls: Any, kind: str, path: Path, parameters_: dict[str, Any]) -> Prior:
    try:
        made: Prior = build(cls, "prior", kind, {"path": str(path), **parameters_}) if parameters_ else cls.load(path)
    except UserError:
        raise
    except Exception as error:
        # A damaged file may break the making of its network anywhere; from Python the cause is told.
        raise UserError(
            f"{str(path)!r}: no prior of format {kind} can be made of it ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); copy it again, or mend what lies beside it"
        ) from error
    return made


def _with_error_curve(prior: Prior, path: Path) -> Prior:
    """Take over the curve that `invsolve prior measure` wrote beside a foreign checkpoint, if there is one."""
    beside = path.with_name(f"{path.name}.error_curve.json")
    # Beside a name as long as a file system allows, none can be that is longer.
    if len(os.fsencode(beside.name)) <= 255 and beside.is_file():
        try:
            curve = json.loads(beside.read_text(encoding="utf-8"))["error_curve"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            curve = None
        if not is_error_curve(curve):
            raise UserError(f"{beside}: is no error curve; remove it, or write it again with invsolve prior measure")
        prior.error_curve = curve
    return prior


def fill_image_size(name: str, given: Mapping[str, Any], image_shape: Sequence[int]) -> dict[str, Any]:
    """Add to an operator's parameters what images tell: `image_size`, and `channels` of colour, where it takes them.

    Args:
        name: of the operator.
        given: its parameters; what is given stays.
        image_shape: (C, *spatial) of the images.
    """
    takes = {p.name for p in parameters(registry.find("operator", name))}
    channels, *size = image_shape
    square = len(set(size)) == 1
    told: dict[str, Any] = {}
    # A mask tells the size itself, but for one of columns, of which there are as many as rows if nothing else is said, and one
    # that is yet to be made.
    tells = "mask" in given and "acceleration" not in given
    if "image_size" in takes and "geometry" not in given and not (square and tells):
        told["image_size"] = size[0] if square else size
    if "channels" in takes and channels > 1:
        told["channels"] = channels
    return {**told, **given}
