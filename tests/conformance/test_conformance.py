"""Everything registered holds what its kind promises; a new plugin is tested by existing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.registry.check import instances
from invsolve.testing import Case, checks

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
OPERATORS: dict[str, dict[str, Any]] = {"blur": {"sigma": 1.5}, "ct": {"image_size": 16, "angles": 8}}
ROUNDING = "states that L-BFGS multiplies rounding until it has arrived"
#: Claims that do not hold everywhere, by operator and strategy, and why.
KNOWN: dict[str, dict[str, dict[str, str]]] = {
    "blur-": {
        "d-flow": {"batch independence": ROUNDING},
        "dps": {
            "widths along the eigenvectors better than the prior's": "states its widest, of noise that differs by pixel"
        },
        "flowchef-fitted": {"widths along the eigenvectors better than the prior's": "states its widest, of ct"},
    },
    "ct-": {
        "enkg": {"mean": "states that it takes as many members as pixels; here are half as many"},
        "dpg": {"mean": "states that it errs most in tomography"},
        "mgdm": {"widths along the eigenvectors": "states that some directions of tomography stay too wide"},
        "flowchef": {"mean": "one length for all: what tomography hardly passes on stays near the prior's mean"},
        "flowdps": dict.fromkeys(
            ("mean", "width", "widths along the eigenvectors"),
            "states that along some directions of tomography samples stay the prior's",
        ),
    },
}


def cases(kind: str, device: str, where: str = "", **options: Any) -> list[Any]:
    """Every property of everything registered of a kind; the cases of one instance share its run, so one process has them.

    What needs a package that is not here is one case, which is skipped.
    """
    params = []
    for name, cls in registry.available(kind).items():
        try:
            made = instances(cls, kind, name)
        except ModuleNotFoundError as missing:
            absent = pytest.mark.skip(reason=f"{kind} {name!r} needs the package {missing.name}")
            params.append(pytest.param(None, id=f"{where}{name}", marks=absent))
            continue
        for k, instance in enumerate(made):
            label = f"{where}{name}-{k}"
            group = pytest.mark.xdist_group(f"{label}-{device}")
            known = KNOWN.get(where, {}).get(name)
            # Advice is measured where weak settings miss the data most; elsewhere it would only take longer.
            of_one = [
                case
                for case in checks(instance, known, device=device, **options)
                if case.name != "advice" or where == "ct-"
            ]
            params += [pytest.param(case, id=f"{label}-{case.name}", marks=group) for case in of_one]
    return params


def everywhere(kind: str) -> list[Any]:
    return [param for device in DEVICES for param in cases(kind, device, "" if device == "cpu" else f"{device}-")]


def on_other_operators() -> list[Any]:
    return [
        param
        for name, given in OPERATORS.items()
        for param in cases("strategy", "cpu", f"{name}-", operator=invsolve.operator(name, **given))
    ]


@pytest.mark.parametrize("case", everywhere("operator"))
def test_operator(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", everywhere("prior"))
def test_prior(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", everywhere("strategy"))
def test_strategy_on_half_the_pixels(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", on_other_operators())
def test_strategy_on_other_operators(case: Case) -> None:
    case()


@pytest.mark.parametrize(("kind", "least"), [("operator", 4), ("strategy", 5), ("prior", 3), ("layout", 2)])
def test_there_is_something_of_each_kind(kind: str, least: int) -> None:
    assert len(registry.available(kind)) >= least
