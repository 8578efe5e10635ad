"""Everything registered holds what its kind promises; a new plugin is tested by existing."""

import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.contracts.strategy import Strategy
from invsolve.registry.check import instances
from invsolve.testing import check_operator, check_prior, check_strategy

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def registered(kind: str) -> list[object]:
    return [
        pytest.param(name, k, id=f"{name}-{k}")
        for name, cls in registry.available(kind).items()
        for k in range(len(getattr(cls, "examples", ({},))))
    ]


def make(kind: str, name: str, k: int) -> object:
    return instances(registry.find(kind, name), kind, name)[k]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "k"), registered("operator"))
def test_operator(name: str, k: int, device: str) -> None:
    report = check_operator(make("operator", name, k), device=device)
    assert report, str(report)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "k"), registered("prior"))
def test_prior(name: str, k: int, device: str) -> None:
    report = check_prior(make("prior", name, k), device=device)
    assert report, str(report)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "k"), registered("strategy"))
def test_strategy_on_half_the_pixels(name: str, k: int, device: str) -> None:
    report = check_strategy(make("strategy", name, k), device=device)
    assert report, str(report)


@pytest.mark.parametrize("operator", ["blur", "ct"])
@pytest.mark.parametrize(("name", "k"), registered("strategy"))
def test_strategy_on_other_operators(name: str, k: int, operator: str) -> None:
    strategy = make("strategy", name, k)
    assert isinstance(strategy, Strategy)
    forward = {"blur": {"sigma": 1.5}, "ct": {"image_size": 16, "angles": 8}}[operator]
    if "maskable" in strategy.needs and operator == "blur":
        pytest.skip("blur is not maskable")
    report = check_strategy(strategy, invsolve.operator(operator, **forward))
    assert report, str(report)


def test_there_is_something_of_each_kind() -> None:
    for kind, least in (("operator", 4), ("strategy", 5), ("prior", 3), ("layout", 2)):
        assert len(registry.available(kind)) >= least
