"""Continuing a partial result file: only with the same configuration, and without what was damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.reading import text
from invsolve.datasets.hdf5.result_check import outline, stored_config
from invsolve.errors import InUse, UserError


def continue_partial(partial: Path, provenance: dict[str, Any], items: range, overwrite: bool) -> h5py.File | None:
    """Open a partial of the same configuration; None when it is to be started anew.

    Raises:
        InUse: another process has it open.
        UserError: unless overwrite, unreadable or of another configuration; says what differs.
    """
    try:
        file = h5py.File(partial, "r+")
    except BlockingIOError:
        raise InUse(f"{partial}: another process is writing it; wait for that one or stop it") from None
    except OSError as error:
        if overwrite:
            return None
        reason = " ".join(str(error).split())
        raise UserError(f"{partial}: cannot be continued ({reason}); give --overwrite to start anew") from None
    try:
        _check_ours(file, partial)
        _check_same(file, partial, provenance, items, overwrite)
        _forget_broken(file)
    except (UserError, KeyError, OSError, RuntimeError, ValueError) as error:
        file.close()
        if overwrite:
            return None
        if isinstance(error, UserError):
            raise
        reason = shown(" ".join(str(error).split()))
        raise UserError(f"{partial}: cannot be continued ({reason}); give --overwrite to start anew") from None
    return file


def _check_ours(file: h5py.File, partial: Path) -> None:
    """Refuse a file whose members or numbers lie in another one: what is written to them would end there."""
    for group in (file, *[file[n] for n in file if file.get(n, getclass=True, getlink=True) is h5py.HardLink]):
        if not isinstance(group, h5py.Group):
            continue
        for name in group:
            hard = group.get(name, getclass=True, getlink=True) is h5py.HardLink
            if not hard or (isinstance(group[name], h5py.Dataset) and (group[name].is_virtual or group[name].external)):
                raise UserError(
                    f"{partial}: its {shown(name)} lies elsewhere, as no result's does; give --overwrite to start anew"
                )


def _check_same(file: h5py.File, partial: Path, provenance: dict[str, Any], items: range, overwrite: bool) -> None:
    anew = "give --overwrite to start anew, or another output name"
    if "done" not in file or "items" not in file or "config_sha256" not in file.attrs:
        raise UserError(f"{partial}: is no partial result of invsolve; {anew}")
    known = outline(file, partial)
    was = range(known.items[0], known.items[-1] + 1)
    if text(file.attrs["config_sha256"]) != provenance.get("config_sha256", "") or was != items:
        changes = changed(stored_config(file, partial), provenance) or [
            f"items {was.start}:{was.stop} -> {items.start}:{items.stop}"
        ]
        raise UserError(f"{partial}: was begun with another configuration ({'; '.join(changes[:4])}); {anew}")
    version = (provenance.get("versions") or {}).get("invsolve", "")
    # With --overwrite the user agreed to lose the partial; still, the same command must go on after a kill.
    begun = text(file.attrs.get("invsolve_version", ""))
    if overwrite and begun != version:
        raise UserError(f"{partial}: was begun by version {begun}; {anew}")


def _forget_broken(file: h5py.File) -> None:
    """Mark as not done what is not finite or does not pass its checksum."""
    for item in np.flatnonzero(file["done"][:]):
        sound = False
        with suppress(OSError, KeyError):
            sound = bool(np.isfinite(file["mean"][item]).all())
        if not sound:
            file["done"][item] = False
    file.flush()


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, one text a value; in what the new one says is "compared", or in all it has."""
    plain = json.loads(json.dumps(dict(new), default=str))
    compared = plain.get("compared", list(plain))
    return [line for key in compared for line in differences(key, old.get(key), plain.get(key))]


def differences(where: str, old: Any, new: Any) -> Iterator[str]:
    """Each value that differs between two nested records, as "where old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(f"{where}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{where} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) <= 24 else f"{said[:21]}..."
