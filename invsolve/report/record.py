"""How a result was made, for people: from the record in its file to rows of name and text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import h5py
import numpy as np

import invsolve
from invsolve import registry
from invsolve.api.advice import Conditions
from invsolve.api.discrepancy import Discrepancy, judge
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.datasets.hdf5 import fingerprint, open_readonly, text
from invsolve.errors import UserError
from invsolve.jobs.origin import noise_of
from invsolve.registry.parameters import build, parameters


def strategy_of(config: dict[str, Any]) -> Strategy | None:
    """The strategy that a run took, with its parameters; None where it is not installed here, or has changed."""
    given = config.get("strategy") or {}
    try:
        name, values = given["name"], given.get("parameters") or {}
        plugin = registry.find("strategy", name)
        # The record holds the class's own facts, too.
        known = {p.name for p in parameters(plugin)}
        made: Strategy = build(plugin, "strategy", name, {k: v for k, v in values.items() if k in known})
    except (KeyError, TypeError, UserError):
        return None
    return made


def scale_of(config: dict[str, Any]) -> Scale | None:
    """The scale that a run took; None where the record has no numbers for it."""
    given = config.get("scale") or {}
    values = [np.atleast_1d(given[k]) for k in ("factor", "offset") if not isinstance(given.get(k), dict | None)]
    if len(values) != 2:
        return None
    return Scale(float(values[0][0]), float(values[1][0]), str(given.get("origin", "")))


def judged(diagnostics: dict[str, np.ndarray], config: dict[str, Any]) -> Discrepancy | None:
    """The judgement of `invsolve.api.discrepancy` from what a result file carries; without advice for an unknown strategy.

    None where the file carries no residuals.
    """
    if not {"discrepancy", "discrepancy_dof"} <= diagnostics.keys():
        return None
    strategy = strategy_of(config)
    judgement = judge(
        diagnostics,
        Conditions(strategy or Strategy(), noise_of(config), scale_of(config), str(config.get("doubt") or "")),
    )
    return judgement if strategy is not None else dataclasses.replace(judgement, warning="")


def facts(result: Any) -> list[tuple[str, str]]:
    """Rows of (what, text) on how a result was made, in the order in which a reader asks; unknown ones are left out."""
    config = result.config
    with open_readonly(result.path) as file:
        created = text(file.attrs.get("created", ""))
        compressed = _storage(file)
    entry, prior = config.get("input") or {}, config.get("prior") or {}
    versions = config.get("versions") or {}
    size = result.path.stat().st_size
    rows = [
        ("Result", f"{result.path.name}, {size / 1e6:.3g} MB{compressed}"),
        ("Checksum of the result", fingerprint(result.path)),
        ("Made on", created.replace("T", " ").replace("+00:00", " UTC")),
        ("Command", str(config.get("command") or "")),
        ("Measurement", str(entry.get("file") or "")),
        ("Checksum of the measurement", str(entry.get("fingerprint") or "")),
        ("How it was read", "; ".join(map(str, config.get("notes") or []))),
        ("Operator", _named(config.get("operator"))),
        ("Noise", _named(config.get("noise"), flat=True)),
        ("Strategy", _strategy(config)),
        ("Prior", _named(prior) if prior else "none"),
        ("Prior from", str(prior.get("source") or "")),
        ("Checksum of the prior", str(prior.get("sha256") or "")),
        ("Scale", _named(config.get("scale"), flat=True)),
        ("Samples and seed", f"{config.get('samples', '?')} per item, seed {config.get('seed', '?')}"),
        ("Cost", _cost(result)),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Machine", ", ".join(str(config[k]) for k in ("machine", "device") if config.get(k))),
        ("This page", f"written by invsolve {invsolve.__version__}"),
    ]
    return [(name, value) for name, value in rows if value.strip(", ")]


def _cost(result: Any) -> str:
    """What the engine counted, on average over items."""
    kinds = {"network_calls": "network calls", "vjp_calls": "backward calls", "operator_calls": "operator calls"}
    costs = {name: result.diagnostics.get(name) for name in (*kinds, "seconds")}
    means = {name: float(np.mean(v)) for name, v in costs.items() if v is not None and v.ndim == 1}
    parts = [f"{means[name]:.0f} {text}" for name, text in kinds.items() if means.get(name)]
    cost = f"{', '.join(parts)} a sample" if parts else ""
    return "; ".join(
        part for part in (cost, f"{means['seconds']:.2g} s per item" if "seconds" in means else "") if part
    )


def _storage(file: h5py.File) -> str:
    done = file["done"][:]
    return "" if done.all() else f", unfinished: {int(done.sum())} of {len(done)} items"


def _named(entry: Any, flat: bool = False) -> str:
    """A name and its parameters, `name, key value, ...`."""
    if not isinstance(entry, dict):
        return ""
    given = {k: v for k, v in entry.items() if k != "name"} if flat else entry.get("parameters") or {}
    parts = [f"{key} {_value(value)}" for key, value in given.items() if value not in (None, "")]
    return ", ".join([str(entry["name"]), *parts] if "name" in entry else parts)


def _strategy(config: dict[str, Any]) -> str:
    made, entry = strategy_of(config), dict(config.get("strategy") or {})
    if made is not None:
        plugin: Any = registry.find("strategy", entry["name"])
        entry["parameters"] = {p.name: getattr(made, p.name) for p in parameters(plugin)}
    return _named(entry)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and set(value) == {"shape", "sha256"}:
        return f"array {' x '.join(map(str, value['shape']))}, sha256 {value['sha256'][:12]}"
    return value if isinstance(value, str) else json.dumps(value)
