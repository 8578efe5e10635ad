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

    found = inspect_file(file, layout, key_values(read))
    emit(found, json_, _text(found))


def _text(found: dict[str, Any]) -> str:
    layout = f" (layout {found['layout']})" if "layout" in found else ""
    lines = [f"{found['file']}: {found['text']}{layout}"]
    y, image, operator = found.get("y"), found.get("image"), found.get("operator")
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
        noise = found["noise"]
        said = "not in the file"
        if noise is not None:
            parts = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in noise.items() if k != "name"]
            said = ", ".join([noise["name"], *parts])
        rows.append(("noise", said))
        rows.append(("truth", "in the file" if found["truth"] else "none"))
    width = max((len(name) for name, _ in rows), default=0)
    lines += [f"  {name.ljust(width)}  {text}" for name, text in rows]
    if not rows and found["datasets"]:
        lines.append("  holds")
        lines += [f"    {name}  {text}" for name, text in list(found["datasets"].items())[:_LISTED]]
        if len(found["datasets"]) > _LISTED:
            lines.append(f"    and {len(found['datasets']) - _LISTED} more")
    for title, key in (("how it was read", "notes"), ("missing", "missing")):
        if found.get(key):
            lines += ["", f"{title}:", *(f"  - {line}" for line in found[key])]
    for entry in found["commands"]:
        lines += ["", f"{entry['does']}:", f"  {entry['command']}"]
    return "\n".join(lines)


def _times(shape: list[Any]) -> str:
    return " x ".join(f"{s:g}" for s in shape)
