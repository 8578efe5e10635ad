"""The commands about plugins: list, show, check, new."""

from __future__ import annotations

import enum
import shutil
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from invsolve.cli.common import AsJson, Plugins, emit, start, table

app = typer.Typer(help="List, explain, check and scaffold plugins.", no_args_is_help=True)


class Kind(enum.StrEnum):
    """What `plugins new` can make."""

    operator = "operator"
    strategy = "strategy"
    prior = "prior"
    layout = "layout"
    noise = "noise"
    policy = "policy"


@app.command("list")
def list_(
    plugin: Plugins = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As tables in Markdown, as in the README.")] = False,
    json_: AsJson = False,
) -> None:
    """Everything registered, built-in and foreign."""
    start(plugin)
    from invsolve import registry
    from invsolve.registry import tables

    if markdown:
        print("\n\n".join(tables.markdown(kind) for kind in registry.KINDS))
        return
    summaries = {kind: tables.summaries(kind) for kind in registry.KINDS}
    rows = [[kind, name, text] for kind, names in summaries.items() for name, text in names.items()]
    widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
    room = max(shutil.get_terminal_size().columns - sum(widths) - 4, 30)
    lines = [
        f"{kind.ljust(widths[0])}  {name.ljust(widths[1])}  {textwrap.shorten(text, room)}" for kind, name, text in rows
    ]
    emit(summaries, json_, "\n".join(lines))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of an operator, noise, strategy, prior, layout or policy.")],
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """What a plugin does and its parameters."""
    start(plugin)
    from invsolve import registry
    from invsolve.contracts.paper import papers_of
    from invsolve.registry.parameters import parameters

    kind, cls = registry.find_any(name)
    known: Any = cls
    rows = [
        {"name": p.name, "type": p.type, "default": "required" if p.required else _plain(p.default), "text": p.text}
        for p in parameters(cls)
    ]
    result: dict[str, Any] = {
        "name": known.name,
        "aliases": list(getattr(known, "aliases", ())),
        "kind": kind,
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "text": _description(cls),
        "papers": [paper.record() for paper in papers_of(cls)],
        "presets": {key: dict(values) for key, values in getattr(known, "presets", {}).items()},
    }
    also = f", also {', '.join(result['aliases'])}" if result["aliases"] else ""
    text = f"{kind} {known.name}{also}  ({result['class']})\n\n{result['text']}"
    text += "".join(f"\n\n{'Paper' if k == 0 else 'Builds on'}: {p.line}" for k, p in enumerate(papers_of(cls)))
    if rows:
        lines = [[r["name"], r["type"], str(r["default"])] for r in rows]
        text += "\n\n" + table(["parameter", "type", "default"], lines) + "\n"
        text += "".join(f"\n{r['name']}: {r['text']}" for r in rows if r["text"])
    for key, values in result["presets"].items():
        text += f"\n\npreset={key}: " + ", ".join(f"{k}={v}" for k, v in values.items())
    emit(result | {"parameters": rows}, json_, text)


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="FILE.py:CLASS, MODULE:CLASS, or a registered name.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    plugin: Plugins = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="Instead of one plugin, measure every operator: the page docs/operators_table.md."
        ),
    ] = False,
    json_: AsJson = False,
) -> None:
    """Hold a plugin to what its kind promises; exit code 1 when a property is broken."""
    start(plugin)
    if markdown:
        from invsolve.registry import properties

        print(properties.page(), end="")
        return
    if not target:
        from invsolve.errors import UserError

        raise UserError(
            "plugins check needs FILE.py:CLASS, MODULE:CLASS or a registered name; or --markdown for all operators"
        )
    from invsolve.api.loading import make
    from invsolve.registry.check import check_target

    reports = check_target(target, make, device)
    findings = [
        {"subject": r.subject, "property": f.name, "ok": f.ok, "figure": f.figure, "limit": f.limit, "text": f.text}
        for r in reports
        for f in r.findings
    ]
    emit(findings, json_, "\n".join(str(r) for r in reports))
    if not all(reports):
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name to register, such as my-scanner.")],
    kind: Annotated[Kind, typer.Option(help="What to make.")] = Kind.operator,
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path(),
) -> None:
    """Write a working plugin and its test, to start from."""
    start(None)
    from invsolve.registry.scaffold import write_plugin

    for file in write_plugin(name, kind.value, folder):
        print(file)


def _description(cls: type) -> str:
    text = (cls.__doc__ or "").strip().split("\n    Args:")[0].split("\n    Raises:")[0]
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
