"""What a result was made from: its scan, the noise and the prior, opened again and held against its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invsolve import api, registry
from invsolve.api.provenance import noise_record, operator_record
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.prior import Prior
from invsolve.datasets.hdf5 import fingerprint
from invsolve.errors import UserError
from invsolve.files.opening import open_measurement
from invsolve.registry.parameters import build


@dataclass(frozen=True)
class Measured:
    """The scan of a result, or why there is none.

    Attributes:
        measurement: None where it cannot be used.
        noise: as the run took it; None where the record does not say.
        why: a sentence on what is missing.
    """

    measurement: Measurement | None
    noise: Noise | None = None
    why: str = ""


def open_scan(path: Path, result: Any, layout: str | None = None, read: Mapping[str, Any] | None = None) -> Measured:
    """Open the scan that a result was made from.

    Args:
        path: the scan.
        result: a `ResultView`.
        layout, read: as they were for the run.

    Raises:
        UserError: it cannot be read, or is not the one that the result was made from, read as it was then.
    """
    origin = str((result.config.get("input") or {}).get("fingerprint") or "")
    measurement = open_measurement(path, layout, read)
    if origin and measurement.fingerprint != origin:
        if _file_part(measurement.fingerprint) == _file_part(origin):
            raise UserError(f"{path}: was read in another way for the run: give --layout and --read as they were then")
        raise UserError(f"{path}: is not the scan that {result.path} was made from; give that one, or leave --scan out")
    return _usable(measurement, result)


def find_scan(result: Any, layout: str | None = None, read: Mapping[str, Any] | None = None) -> Measured:
    """Open the scan where the record says it was, or beside the result; not finding it is no mistake."""
    entry = result.config.get("input") or {}
    origin, name = str(entry.get("fingerprint") or ""), str(entry.get("file") or "")
    how = "invsolve report --scan SCAN.h5 adds it"
    if not origin or not name:
        return Measured(None, why=f"The result does not say from which file it was made; {how}.")
    for path in (Path(name), result.path.parent / Path(name).name):
        try:
            # What a file holds is compared before a layout makes anything of it.
            if path.is_dir() or (path.is_file() and _file_part(origin).startswith(fingerprint(path))):
                return open_scan(path, result, layout, read)
        except (UserError, OSError) as error:
            return Measured(None, why=f"Without the residual of the mean: {error}.")
    return Measured(None, why=f"The scan is not where it was for the run; {how}.")


def _file_part(whole: str) -> str:
    """A fingerprint without that of a layout's options."""
    return whole.partition("+options:")[0]


def _usable(measurement: Measurement, result: Any) -> Measured:
    if len(measurement.y) != result.input_items:
        return Measured(None, why=f"The scan has {len(measurement.y)} items, the run had {result.input_items}.")
    entry = result.config.get("operator")
    if entry and operator_record(measurement.operator) != entry:
        return Measured(
            None, why="The scan reads as another one than it was for the run: give --layout and --read as then."
        )
    if measurement.region is not None:
        return Measured(None, why="The result is a part of what the data see, so A(mean) cannot be computed from it.")
    noise, known = noise_of(result.config), measurement.noise
    # Of a large array the record has the hash alone.
    if noise is None and known is not None and noise_record(known) == result.config.get("noise", noise_record(known)):
        noise = known
    return Measured(measurement, noise)


def noise_of(config: dict[str, Any]) -> Noise | None:
    """The noise that a run took; None where the record has no numbers for it."""
    given = dict(config.get("noise") or {})
    try:
        name = given.pop("name")
        made: Noise = build(registry.find("noise", name), "noise", name, given)
    except (KeyError, TypeError, ValueError, RuntimeError, UserError):
        return None
    return made


def modest(value: Any) -> bool:
    """Whether parameters from a record make nothing huge: no whole number above 10 000, however deep."""
    if isinstance(value, Mapping):
        return all(modest(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(modest(v) for v in value)
    return not isinstance(value, int) or abs(value) <= 10_000


def prior_of(config: Mapping[str, Any], given: str | None = None) -> Prior:
    """The prior that a run took, from its name or from the file or hub it came from, or from what is given.

    Raises:
        UserError: it is not found, or is another one than it was for the run.
    """
    entry = config.get("prior") or {}
    if not entry and given is None:
        raise UserError("the run took no prior")
    tried: list[tuple[Any, Any]] = (
        [(given, {})]
        if given is not None
        else [(entry.get("name"), entry.get("parameters")), (entry.get("source"), {})]
    )
    for name, parameters in tried:
        if not modest(parameters):
            continue
        try:
            prior = api.load_prior(str(name), self_test=False, **(parameters or {}))
        except (UserError, TypeError, OSError):
            if given is not None:
                raise
            continue
        if entry.get("sha256") in (None, prior.fingerprint()):
            return prior
    raise UserError(
        f"prior {entry.get('name')!r} of the run is not found, or is another one now: give --prior as for the run"
    )
