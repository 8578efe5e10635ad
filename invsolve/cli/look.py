"""The command `inspect`: what a file is, what is missing, and the command to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from invsolve.cli.common import AsJson, Plugins, Read, emit, key_values, start

_LISTED = 16


def inspect(
    file: Annotated[Path, typer.Argument(help="Any file (or folder): a measurement, images, a result, a prior.")],
    layout: Annotated[str | None, typer.Option(help="Layout of the file, where it is not recognised.")] = None,
    read: Read = None,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Say what a file is: shapes, axes, units, what is missing, and the command that reconstructs it."""
    start(plugin)
    from invsolve.files.inspection import inspect_file

    facts = inspect_file(file, layout, key_values(read), plugin or ())
    emit(facts, json_, _text(facts))


def _text(facts: dict[str, Any]) -> str:
    layout = f" (layout {facts['layout']})" if "layout" in facts else ""
    lines = [f"{facts['file']}: {facts['text']}{layout}"]
    y, image, operator = facts.get("y"), facts.get("image"), facts.get("operator")
    rows: list[tuple[str, str]] = []
    if y:
        rows.append(
            ("measured", f"{y['items']} x {_times(y['shape'])} {y['dtype']} ({y['axes'] or 'item, measurement'})")
        )
    if operator:
        parts = [f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in operator.items() if k != "name"]
        rows.append(("operator", ", ".join([operator["name"], *parts])))
    if image:
        unit = f", unit {image['unit']}" if image.get("unit") else ", no unit"
        number = ", complex" if image.get("complex") else ""
        size = f", pixel {_times(image['spacing'])} {image['spacing_unit']}" if image.get("spacing") else ""
        rows.append(("images", f"{image['items']} x {_times(image['shape'])}{number}{unit}{size}"))
    if y:
        noise = facts["noise"]
        noise_text = "not in the file"
        if noise is not None:
            parts = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in noise.items() if k != "name"]
            noise_text = ", ".join([noise["name"], *parts])
        rows.append(("noise", noise_text))
        rows.append(("truth", "in the file" if facts["truth"] else "none"))
    width = max((len(name) for name, _ in rows), default=0)
    lines += [f"  {name.ljust(width)}  {text}" for name, text in rows]
    if not rows and facts["datasets"]:
        lines.append("  holds")
        lines += [f"    {name}  {text}" for name, text in list(facts["datasets"].items())[:_LISTED]]
        if len(facts["datasets"]) > _LISTED:
            lines.append(f"    and {len(facts['datasets']) - _LISTED} more")
    for title, key in (("how it was read", "notes"), ("missing", "missing")):
        if facts.get(key):
            lines += ["", f"{title}:", *(f"  - {line}" for line in facts[key])]
    for entry in facts["commands"]:
        lines += ["", f"{entry['does']}:", f"  {entry['command']}"]
    return "\n".join(lines)


def _times(shape: list[Any]) -> str:
    return " x ".join(f"{s:g}" for s in shape)
