"""The documentation cannot drift: every python block runs, and every hook and need is on the page."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pluggy
import pytest
import torch

from invsolve.contracts.strategy import NEEDS
from invsolve.datasets import hdf5
from invsolve.registry import hooks, tables

ROOT = Path(__file__).parents[2]
EXTENDING = ROOT / "docs" / "extending.md"
HOOKS = [name for name, value in vars(hooks).items() if name.startswith("invsolve_") and callable(value)]


def blocks(text: str) -> list[tuple[int, str]]:
    """The fenced python blocks of a page, each with the line on which its code starts."""
    matches = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in matches]


PAGES = [*sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")), "README.md"]


# The strategy of that page is a dozen lines that fit no step.
@pytest.mark.discrepant("docs/extending.md")
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / page
    if not file.exists():
        pytest.skip(f"no {page}")
    monkeypatch.chdir(tmp_path)
    # A real module, because pickling and dataclasses look classes up in theirs.
    module = ModuleType(f"page_{file.stem}".lower())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in blocks(file.read_text(encoding="utf-8")):
        # Blank lines in front, so that a traceback shows the page's own line.
        exec(compile("\n" * line + code, str(file), "exec", dont_inherit=True), module.__dict__)


@pytest.mark.slow
def test_commands_of_the_volumes_page_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = 2200 * torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1000
    hdf5.write_images("truth.h5", truth, unit="HU")
    page = (ROOT / "docs" / "volumes.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ invsolve (.*)$", page, re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        # tests/test_cluster.py starts workers; here the command must only be one that could be run.
        planned = ["--dry-run"] if "--workers" in command else []
        code, _, err = cli(*command.split(), *planned)
        assert code == 0, f"{command}: {err}"
    assert hdf5.read_result("joined.h5").items == list(range(6))


def test_the_page_has_examples() -> None:
    assert len(blocks(EXTENDING.read_text(encoding="utf-8"))) >= 7


def test_there_are_six_hooks() -> None:
    plugins = pluggy.PluginManager(hooks.PROJECT)
    plugins.add_hookspecs(hooks)
    assert sorted(HOOKS) == sorted(name for name in vars(plugins.hook) if name.startswith("invsolve_"))
    assert len(HOOKS) == 6


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_shown_with_its_signature(hook: str) -> None:
    signature = str(inspect.signature(getattr(hooks, hook))).replace("collections.abc.", "")
    assert f"@hookimpl\ndef {hook}{signature}:\n" in EXTENDING.read_text(encoding="utf-8")


@pytest.mark.parametrize("need", NEEDS)
def test_need_is_explained(need: str) -> None:
    assert f'| `"{need}"` |' in EXTENDING.read_text(encoding="utf-8")


def test_every_layout_is_explained() -> None:
    from invsolve import registry

    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    for name in registry.available("layout"):
        assert f"`{name}`" in page, f"layout {name} is missing in docs/files.md"


def test_strategy_example_is_short() -> None:
    code = next(code for _, code in blocks(EXTENDING.read_text(encoding="utf-8")) if "(Strategy)" in code)
    body = code[code.index("@dataclass") : code.index("report =")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize("kind", ["operator", "noise", "strategy", "prior", "policy"])
def test_the_readmes_tables_are_generated(kind: str) -> None:
    page = "docs/acquisition.md" if kind == "policy" else "README.md"
    readme = (ROOT / page).read_text(encoding="utf-8")
    table = readme.split(f"<!-- {kind} -->\n")[1].split("\n<!-- end -->")[0]
    assert table == tables.markdown(kind), "copy the table from: invsolve plugins list --markdown"
    # The list of strategies that take a noise grows with them; no docstring makes it shorter.
    texts = [cell for line in table.splitlines() for cell in line.split("|") if not cell.startswith(" `")]
    longest = max(map(len, texts))
    assert longest <= 110, "shorten the first line of the class's docstring"
