"""Bad input of every registered operator: one line that says what is wrong, from Python and from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.contracts.operator import Operator
from invsolve.datasets import hdf5
from invsolve.registry.check import instances
from invsolve.registry.parameters import Parameter, parameters
from tests.support.types import Cli

NAN, INF = float("nan"), float("inf")
#: Values that are wrong for most parameters: of the wrong type, shape, size or sign, no numbers, or files that are none.
VALUES: list[Any] = [
    *(NAN, INF, -INF, -1, 0, -2.5, 10**30, True, 1j),
    *("nonsense", "", "missing.npy", "damaged.npy", "text.npy", "pickled.npy", "folder.npy", b"x"),
    *([], [-1, -1], [0, 0], [NAN, NAN], [1, 2, 3, 4, 5, 6, 7], ["a"], [[1.0], [2.0, 3.0]], {}, {"a": 1}, object()),
    *(np.zeros(0), np.zeros((0, 3)), np.full((3, 3), INF), np.zeros((1,) * 7), np.ones((3, 3)) * 1j, np.array(["a"])),
    np.array(3.0),
]
#: The same as words of a command.
WORDS = ("nan", "-1", "nonsense", "missing.npy")
#: Parameters that count something or say how large it is; below 1 there is nothing.
COUNTS = {"image_size", "channels", "angles", "detectors", "factor", "levels", "quality", "probe_size", "step"}


def made() -> dict[str, list[Operator]]:
    """An operator of each example of all that is registered and whose packages are here."""
    operators: dict[str, list[Operator]] = {}
    for name, cls in registry.available("operator").items():
        try:
            operators[name] = instances(cls, "operator", name)
        except ModuleNotFoundError:
            continue
    return operators


OPERATORS = made()


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("damaged.npy").write_bytes(b"\x93NUMPY\x01\x00garbage")
    np.save("text.npy", np.array(["a"]))
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("folder.npy").mkdir()
    return tmp_path


def complaint(call: Callable[[], object]) -> str:
    """What is wrong with how a call ended: neither well nor by one line of `UserError`; empty where nothing is."""
    try:
        call()
    except invsolve.UserError as error:
        text = str(error)
        return "" if text.strip() and "\n" not in text and len(text) < 1000 else f"not one line: {text[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    return ""


def examples(name: str) -> Iterator[dict[str, Any]]:
    cls: Any = registry.find("operator", name)
    yield from cls.examples


def kinds(name: str) -> tuple[Parameter, ...]:
    """The parameters of an operator."""
    cls: Any = registry.find("operator", name)
    return parameters(cls)


def holds_nan(value: Any) -> bool:
    """Whether a value holds NaN."""
    try:
        return bool(np.isnan(np.asarray(value, dtype=complex)).any())
    except (TypeError, ValueError):
        return False


def spoiled(value: Any) -> Iterator[np.ndarray]:
    """An array that is right, but for one entry."""
    value = value.numpy() if isinstance(value, torch.Tensor) else value
    try:
        array = np.array(value, dtype=complex if np.iscomplexobj(np.asarray(value)) else float)
    except (TypeError, ValueError):
        return
    if array.ndim and array.size:
        array.flat[-1] = NAN
        yield array


def images(operator: Operator, *shape: int) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return x.to(torch.complex64) if operator.complex_image else x


def shape_of(operator: Operator) -> tuple[int, ...]:
    return operator.image_shape or operator.shapes_tried[0]


def measured(name: str, given: dict[str, Any]) -> None:
    """Make an operator and use it.

    Raises:
        AssertionError: NaN was taken for a number, or the measurement of a finite image is not finite.
        UserError: as wished.
    """
    whole = invsolve.operator(name, **given)
    operator = whole.for_item(0)
    y = operator(images(operator, 2, *shape_of(operator)))
    assert bool(y.isfinite().all()), "the measurement is not finite"
    if isinstance(operator, invsolve.LinearOperator):
        assert bool(operator.adjoint(y).isfinite().all()), "the adjoint is not finite"


@pytest.mark.parametrize("name", OPERATORS)
def test_a_wrong_parameter_is_one_line_or_harmless(name: str) -> None:
    found = []
    for example in examples(name):
        for parameter in kinds(name):
            right = example.get(parameter.name)
            for value in [*VALUES, *spoiled(right)]:
                given = {**example, parameter.name: value}
                told = complaint(partial(measured, name, given))
                if not told and holds_nan(value):
                    told = "" if refused(partial(invsolve.operator, name, **given)) else "taken"
                if told:
                    found.append(f"{parameter.name}={' '.join(repr(value).split())[:40]}: {told}")
    assert not found, "\n".join(dict.fromkeys(found))


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except invsolve.UserError:
        return True
    return False


@pytest.mark.parametrize("name", OPERATORS)
def test_counts_below_one_and_unknown_keywords_are_refused(name: str) -> None:
    for example in examples(name):
        for parameter in COUNTS & {p.name for p in kinds(name)}:
            # A list of angles is no count.
            for count in (-3, 0) if parameter == "angles" else (-3, 0, [-3, 4], [4, 0]):
                with pytest.raises(invsolve.UserError, match=name):
                    invsolve.operator(name, **{**example, parameter: count})
        with pytest.raises(invsolve.UserError, match=rf"operator '{name}' has no parameter 'nonsense'"):
            invsolve.operator(name, **{**example, "nonsense": 1})


@pytest.mark.parametrize("name", OPERATORS)
def test_a_wrong_image_is_one_line(name: str) -> None:
    found = []
    for operator in OPERATORS[name]:
        channels, *size = shape_of(operator)
        right = images(operator, 2, channels, *size)
        wrong: dict[str, Any] = {
            "no tensor": right.numpy(),
            "whole numbers": right.real.to(torch.int32),
            "booleans": right.real > 0.5,
            "half precision": right.real.half(),
            "no batch": right[0],
            "no channels": right[0, 0],
            "one number": right.flatten()[0],
            "no pixels": right[..., :0],
            "an axis more": right[..., None],
        }
        if operator.complex_image:
            wrong["real numbers"] = right.real
        if operator.image_shape is not None:
            wrong["another size"] = images(operator, 2, channels, *size[:-1], size[-1] + 1)
            wrong["other channels"] = images(operator, 2, channels + 1, *size)
        for what, x in wrong.items():
            if told := complaint(partial(operator, x)):
                found.append(f"{what}: {told}")
            if "no tensor" not in what and (
                told := complaint(partial(invsolve.simulate, x, operator, invsolve.Gaussian(0.1)))
            ):
                found.append(f"simulate, {what}: {told}")
    assert not found, "\n".join(dict.fromkeys(found))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_wrong_measurement_is_one_line(name: str) -> None:
    found = []
    for operator in OPERATORS[name]:
        y = operator(images(operator, 2, *shape_of(operator)))
        wrong: dict[str, torch.Tensor] = {
            "an axis more": y[..., None],
            "an axis less": y[..., 0],
            "no entries": y[..., :0],
            "one entry more": torch.cat([y, y[..., :1]], -1),
            "one number": y.flatten()[0],
            "whole numbers": y.real.to(torch.int32),
        }
        for what, data in wrong.items():
            if isinstance(operator, invsolve.LinearOperator):
                told = complaint(partial(operator.adjoint, data))
                # An axis of length 1 may come and go; other numbers may not.
                fixed = operator.image_shape is not None and data.numel() != y.numel()
                if not told and fixed and not refused(partial(operator.adjoint, data)):
                    told = "taken"
                if told:
                    found.append(f"adjoint, {what}: {told}")
            strategy = "linear" if isinstance(operator, invsolve.LinearOperator) else "tv"
            run = partial(invsolve.reconstruct, data, operator, noise=invsolve.Gaussian(0.1), strategy=strategy)
            if told := complaint(partial(run, scale=(0, 1), progress=False)):
                found.append(f"reconstruct, {what}: {told}")
    assert not found, "\n".join(dict.fromkeys(found))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_wrong_word_of_a_command_is_one_line(name: str, tmp_path: Path, cli: Cli) -> None:
    operator, example = OPERATORS[name][0], next(examples(name))
    x = images(operator, 1, *shape_of(operator))
    hdf5.write_images(tmp_path / "x.h5", x)
    settings = []
    for key, value in example.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            np.save(f"{key}.npy", np.asarray(value))
            value = f"{key}.npy"
        settings.append((key, str(value).replace("'", '"')))
    found = []
    wrongs = [(p.name, word) for p in kinds(name) for word in WORDS]
    for key, word in [*wrongs, ("nonsense", "1")]:
        given = [f"{k}={v}" for k, v in settings if k != key] + [f"{key}={word}"]
        sets = [part for text in given for part in ("--set", text)]
        code, out, err = cli(
            "simulate", "x.h5", "-o", "y.h5", "--operator", name, *sets, "--noise", "gaussian:0.1", "--overwrite"
        )
        lines = [line for line in err.strip().splitlines() if "warning:" not in line]
        if code not in (0, 2) or (code == 2 and (len(lines) != 1 or out or "Traceback" in err)):
            found.append(f"{key}={word}: exit {code}: {err[-300:]}")
        if word == "nan" and code == 0 and next(p.type for p in kinds(name) if p.name == key) != "str":
            found.append(f"{key}=nan is taken")
    assert not found, "\n".join(dict.fromkeys(found))
