"""Plugins: every hook works, broken ones are skipped with a warning, a single file is a plugin, parameters explain themselves."""

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pluggy
import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.registry import hooks
from invsolve.registry.parameters import build, parameters
from tests.support.types import Cli


class FakeEntry:
    """An entry point as importlib.metadata returns it."""

    dist = None

    def __init__(self, name: str, module: object) -> None:
        self.name, self.value, self.module = name, f"{name}_module", module

    def load(self) -> object:
        if isinstance(self.module, Exception):
            raise self.module
        return self.module


class Good:
    @staticmethod
    @invsolve.hookimpl
    def invsolve_operators() -> dict[str, type]:
        return {"good": type("GoodOperator", (invsolve.LinearOperator,), {"__doc__": "Fine."})}


class Misspelt:
    @staticmethod
    @invsolve.hookimpl
    def invsolve_operatros() -> dict[str, type]:
        return {}


class Raises:
    @staticmethod
    @invsolve.hookimpl
    def invsolve_operators() -> dict[str, type]:
        raise RuntimeError("no licence")


class Takes:
    @staticmethod
    @invsolve.hookimpl
    def invsolve_operators() -> dict[str, type]:
        return {"good": type("Other", (invsolve.LinearOperator,), {})}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let a test say which entry points exist."""

    def use(*entries: FakeEntry) -> None:
        monkeypatch.setattr(registry.finding.importlib.metadata, "entry_points", lambda group: list(entries))
        registry.manager.cache_clear()
        registry.finding._mapping.cache_clear()

    yield use
    monkeypatch.undo()
    registry.manager.cache_clear()
    registry.finding._mapping.cache_clear()


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (FakeEntry("bad", ImportError("no module named gpu_magic")), "gpu_magic"),
        (FakeEntry("typo", Misspelt), "invsolve_operatros"),
        (FakeEntry("raises", Raises), "no licence"),
        (FakeEntry("takes", Takes), "taken"),
        (FakeEntry("empty", object()), "no hook"),
    ],
)
def test_a_broken_plugin_warns_and_the_rest_works(fresh: Callable[..., None], broken: FakeEntry, text: str) -> None:
    fresh(broken, FakeEntry("good", Good))
    with pytest.warns(registry.BrokenPluginWarning, match=text):
        operators = registry.available("operator")
    assert list(operators) == ["good"]


def test_every_hook_reaches_the_registry(fresh: Callable[..., None]) -> None:
    things = {kind: type(f"A{kind}", (), {"__doc__": kind}) for kind in registry.KINDS}

    class Everything:
        pass

    for kind, hook in registry.KINDS.items():
        setattr(
            Everything,
            hook,
            staticmethod(invsolve.hookimpl(specname=hook)(functools.partial(dict, {kind: things[kind]}))),
        )
    fresh(FakeEntry("everything", Everything))
    for kind in registry.KINDS:
        assert registry.available(kind) == {kind: things[kind]}


def test_the_hooks_are_those_of_the_design() -> None:
    plugins = pluggy.PluginManager(hooks.PROJECT)
    plugins.add_hookspecs(hooks)
    names = {"invsolve_operators", "invsolve_strategies", "invsolve_priors", "invsolve_layouts", "invsolve_noises"}
    names |= {"invsolve_policies"}
    assert {n for n in vars(plugins.hook) if n.startswith("invsolve")} == names == set(registry.KINDS.values())


PLUGIN = '''
"""A stranger's operator: running sums along rows."""
import torch
import invsolve


class CumSum(invsolve.LinearOperator):
    """Sums of all pixels to the left.

    Args:
        gain: factor of the result.
    """

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x.cumsum(-1)

%s
@invsolve.hookimpl
def invsolve_operators():
    return {"cumsum": CumSum}
'''


@pytest.fixture
def cumsum(tmp_path: Path) -> Path:
    """A stranger's plugin file."""
    path = tmp_path / "stranger.py"
    path.write_text(PLUGIN % "")
    return path


def test_a_single_file_is_a_plugin(cumsum: Path) -> None:
    registry.load_file(cumsum)
    operator = invsolve.operator("cumsum", gain=2)
    torch.testing.assert_close(operator(torch.ones(1, 1, 2, 3))[0, 0, 0], torch.tensor([2.0, 4.0, 6.0]))
    registry.load_file(cumsum)  # again, as a notebook does


@pytest.mark.parametrize(
    ("content", "text"),
    [("import nothing_like_it", "failed to import"), ("x = 1", "no hook"), ("def broken(:", "failed to import")],
)
def test_a_file_that_is_no_plugin_is_one_line(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(content)
    with pytest.raises(invsolve.UserError, match=text) as caught:
        registry.load_file(path)
    assert "\n" not in str(caught.value)


def test_plugins_check_passes_it_and_finds_a_wrong_adjoint(cumsum: Path, cli: Cli) -> None:
    code, out, _ = cli("plugins", "check", f"{cumsum}:CumSum")
    assert code == 0, out
    wrong = cumsum.with_name("wrong.py")
    wrong.write_text(
        PLUGIN % "    def adjoint(self, y):\n        return 1.12 * self.gain * y.flip(-1).cumsum(-1).flip(-1)\n\n"
    )
    code, out, _ = cli("plugins", "check", f"{wrong}:CumSum")
    assert code == 1
    failed = [line for line in out.splitlines() if "FAIL" in line]
    assert any("dense matrix" in line and "1.2e-01" in line for line in failed), out
    assert any("adjoint" in line and "not the transpose of forward" in line for line in failed), out


def test_unknown_names_list_near_ones() -> None:
    for kind, name, near in (
        ("operator", "inpaint", "inpainting"),
        ("strategy", "red_diff", "red-diff"),
        ("prior", "gausian-field", "gaussian-field"),
    ):
        with pytest.raises(invsolve.UserError, match=f"'{near}'"):
            registry.find(kind, name)


class Documented(invsolve.LinearOperator):
    """An operator.

    Args:
        count: how many.
        weights: one each.
        mode: which way.
    """

    def __init__(self, count: int, weights: torch.Tensor | None = None, mode: str = "a") -> None:
        super().__init__()
        self.count, self.weights, self.mode = count, weights, mode


def test_parameters_come_from_the_signature_and_docstring() -> None:
    arguments = {p.name: p for p in parameters(Documented)}
    assert arguments["count"].required
    assert arguments["count"].type == "int"
    assert arguments["weights"].type == "array | None"
    assert arguments["mode"].default == "a"
    assert arguments["weights"].text == "one each."


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "needs count"),
        ({"count": "many"}, "count='many' is not int"),
        ({"count": 1.5}, "is not int"),
        ({"count": 1, "wieghts": [1]}, "'weights'"),
        ({"count": 1, "weights": "missing.npy"}, "no such file"),
        ({"count": 1, "weights": {"a": 1}}, "weights"),
    ],
)
def test_wrong_parameters_are_one_line(given: dict, text: str) -> None:
    with pytest.raises(invsolve.UserError, match=text) as caught:
        build(Documented, "operator", "documented", given)
    assert "\n" not in str(caught.value)


def test_arrays_come_as_lists_files_and_tensors(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "w.npy", np.arange(3.0))
    for value in ([0, 1, 2], str(tmp_path / "w.npy"), torch.arange(3), np.arange(3)):
        made = build(Documented, "operator", "documented", {"count": 2, "weights": value})
        assert made.weights.tolist() == [0, 1, 2]
        assert made.parameters_given["count"] == 2


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(invsolve.UserError), warnings.catch_warnings():
        build(Documented, "operator", "documented", {"count": 2, "weights": str(tmp_path / "evil.npy")})


def test_a_strangers_operator_goes_from_file_to_file(cumsum: Path, images: Path, tmp_path: Path, cli: Cli) -> None:
    plugin = ("--plugin", cumsum)
    scan, recon = tmp_path / "scan.h5", tmp_path / "recon.h5"
    code, _, err = cli("simulate", images, "-o", scan, "--operator", "cumsum", "--set", "gain=0.5", *plugin)
    assert code == 0, err
    code, _, err = cli("reconstruct", scan, "-o", recon, "--strategy", "linear", *plugin)
    assert code == 0, err
    code, out, _ = cli("evaluate", recon, "--json")
    assert code == 0
    assert json.loads(out)["mean"]["nrmse"] < 0.1
