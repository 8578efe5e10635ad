"""The JSON Schema of pipeline files, for editors: draft 2020-12, from the same types that check them."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import ConfigDict

from invsolve import registry
from invsolve.pipeline import steps
from invsolve.pipeline.reading import Document

_NAMED = {"operator": "operator", "strategy": "strategy", "prior": "prior", "layout": "layout"}
_OPEN: dict[str, Any] = {
    "Reference": {
        "description": "A variable, ${name} or ${env:NAME}.",
        "type": "string",
        "pattern": r"\$\{[^{}]+\}",
    },
    "Sweep": {
        "description": "Several values: the step, and all that follow from it, run once for each.",
        "type": "object",
        "properties": {"sweep": {"type": "array", "minItems": 1}},
        "required": ["sweep"],
        "additionalProperties": False,
    },
}


class _File(pydantic.BaseModel):
    """The top level, with the steps by their types."""

    model_config = ConfigDict(extra="forbid")

    steps: dict[str, steps.AnyStep]


def schema() -> dict[str, Any]:
    """The schema; names of registered operators, strategies, priors and layouts are in it as examples."""
    typed = _File.model_json_schema()
    definitions = typed["$defs"]
    for definition in definitions.values():
        for key, about in definition.get("properties", {}).items():
            if key != "type":
                definition["properties"][key] = _opened(key, about)
        # The type tells the steps apart, so it has to be written, although Python fills it in.
        definition["required"] = sorted({"type", *definition.get("required", [])})
    whole = Document.model_json_schema()
    whole["properties"]["steps"] = {**typed["properties"]["steps"], "minProperties": 1}
    whole["properties"]["steps"]["description"] = Document.model_fields["steps"].description
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "invsolve pipeline",
        **{key: value for key, value in whole.items() if key != "title"},
        "description": "A pipeline of invsolve: invsolve run PIPELINE.toml.",
        "$defs": {**definitions, **_OPEN},
    }


def _opened(key: str, about: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may also be a reference or a sweep."""
    facts: dict[str, Any] = {name: about[name] for name in about if name in ("description", "default")}
    inner = {name: value for name, value in about.items() if name not in ("description", "default", "title")}
    if key in _NAMED:
        inner["examples"] = sorted(registry.available(_NAMED[key]))
    return {**facts, "anyOf": [inner, {"$ref": "#/$defs/Reference"}, {"$ref": "#/$defs/Sweep"}]}
