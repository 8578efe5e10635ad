"""Finding the plugin that `invsolve plugins check` is pointed at, making instances of it, and running the kit."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from invsolve import registry
from invsolve.contracts.acquisition import Policy
from invsolve.contracts.layout import Layout, Make
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.strategy import Strategy
from invsolve.engine.needs import takes_noise
from invsolve.errors import UserError, suggestion
from invsolve.registry.parameters import build, parameters
from invsolve.testing import (
    Report,
    check_layout,
    check_noise,
    check_operator,
    check_policy,
    check_prior,
    check_strategy,
)

_KINDS: dict[type, str] = {
    Operator: "operator",
    Strategy: "strategy",
    Prior: "prior",
    Layout: "layout",
    Noise: "noise",
    Policy: "policy",
}


def check_target(target: str, make: Make, device: str = "cpu") -> list[Report]:
    """Run the conformance kit on a class, once for each of its `examples`.

    Args:
        target: "file.py:Class", "package.module:Class", "file.py" when it holds one plugin class, or a registered name.
        make: makes operators and noises, for layouts.
        device: where to run; layouts read on the CPU.

    Raises:
        UserError: nothing of that name, or required parameters without an example.
    """
    cls = _find(target)
    kind = next((name for base, name in _KINDS.items() if issubclass(cls, base)), None)
    if kind is None:
        raise UserError(f"{target!r} is none of {', '.join(base.__name__ for base in _KINDS)}")
    name = getattr(cls, "name", "") or cls.__name__
    return [_check(instance, make, device) for instance in instances(cls, kind, name)]


def instances(cls: type, kind: str, name: str) -> list[Any]:
    """Make an instance for each entry of the class's `examples`, by default one without arguments."""
    examples: tuple[dict[str, Any], ...] = getattr(cls, "examples", ({},))
    required = [p.name for p in parameters(cls) if p.required]
    if examples == ({},) and required:
        raise UserError(
            f"{kind} {name!r} needs {', '.join(required)}: give the class an attribute "
            f"examples = ({{{', '.join(f'{r!r}: ...' for r in required)}}},) with small values to check it with"
        )
    return [build(cls, kind, name, dict(example)) for example in examples]


def users_of(noise: Noise) -> list[Strategy]:
    """An instance of each registered strategy that draws from a posterior with this noise, whatever the operator."""
    made = []
    for name, cls in registry.available("strategy").items():
        if not issubclass(cls, Strategy) or not takes_noise(cls, noise) or "prior" not in cls.needs:
            continue
        if not {"linear", "maskable"} & set(cls.needs):
            made.append(instances(cls, "strategy", name)[0])
    return made


def _check(instance: Any, make: Make, device: str) -> Report:
    if isinstance(instance, Operator):
        return check_operator(instance, device=device)
    if isinstance(instance, Strategy):
        return check_strategy(instance, device=device)
    if isinstance(instance, Layout):
        return check_layout(instance, make)
    if isinstance(instance, Noise):
        return check_noise(instance, device, users_of(instance))
    if isinstance(instance, Policy):
        return check_policy(instance)
    return check_prior(instance, device=device)


def _find(target: str) -> type:
    place, colon, name = target.rpartition(":")
    if not colon:
        place, name = target, ""
    if place.endswith(".py"):
        file = Path(place).resolve()
        if not file.is_file():
            raise UserError(f"plugin file {place!r} does not exist")
        module: Any = registry.import_file(file, f"invsolve_checked_{file.stem}")
    elif not colon:
        try:
            return registry.find_any(target)[1]
        except UserError as error:
            raise UserError(f"{error} Or write FILE.py:CLASS") from None
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise UserError(f"module {place!r} cannot be imported: {error}") from None
    here = {
        n: cls
        for n, cls in vars(module).items()
        if inspect.isclass(cls) and cls.__module__ == module.__name__ and issubclass(cls, tuple(_KINDS))
    }
    if not name and len(here) == 1:
        return next(iter(here.values()))
    if name not in here:
        raise UserError(
            f"{place} has no plugin class {name!r}.{suggestion(name, here)}"
            if name
            else f"{place} holds {', '.join(here) or 'no plugin class'}: write {place}:CLASS"
        )
    return here[name]
