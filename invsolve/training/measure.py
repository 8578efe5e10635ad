"""Jobs on finished priors: their error on a file of images, stored with them; their weights in fewer bits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from invsolve import api
from invsolve.contracts.prior import Prior
from invsolve.contracts.scale import Scale
from invsolve.datasets.hdf5 import check_target, replace
from invsolve.errors import UserError
from invsolve.training import data
from invsolve.training.batches import crop_size, held_out
from invsolve.training.error_curve import MEASURED, error_curve
from invsolve.training.parallel import place_of
from invsolve.training.settings import Settings


def measure_file(
    name: str,
    images_path: Path,
    out: Path | None,
    settings: Settings,
    device: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Measure a prior's error curve on a file of images, and store it: in a new prior file, or as JSON beside a foreign one.

    Args:
        name: registered prior, or checkpoint file.
        images_path: images that the prior has not seen, in its physical units.
        out: prior file (.safetensors) or JSON to write; default `<name>.error_curve.json`, which `load_prior` finds.
        settings: of these, how to read the images (dataset, axes, slice_axis, where, crop).
        device: None takes a GPU when there is one.
        overwrite: replace `out`.
        say: told what was found.
        should_stop: asked between batches.

    Raises:
        UserError: the images do not fit the prior, or `out` cannot hold the curve.
    """
    target = out or Path(f"{name}.error_curve.json")
    check_target(target, images_path)
    if target.suffix not in (".safetensors", ".json"):
        raise UserError(f"{target}: write a prior file (.safetensors) or a curve (.json)")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    prior = api.load_prior(name)
    if target.suffix == ".safetensors" and type(prior).save is Prior.save:
        raise UserError(
            f"prior {name!r} is of a format that invsolve does not write; give -o NAME.json, or leave -o out"
        )
    images = data.Images(images_path, settings)
    rows = _unseen(prior, images, settings, say)
    data.examine(images, rows, least=1)
    size = crop_size(images, Settings(crop=settings.crop, levels=1))
    prior.check_shape((images.shape[0], *size))
    scale = Scale() if prior.data_range is None else Scale.from_range(*prior.data_range)
    seen = held_out(images, data.spread(rows, MEASURED).tolist(), size, scale.to_network)
    inside = float(((seen >= -1.5) & (seen <= 1.5)).float().mean())
    if prior.data_range is not None and inside < 0.5:
        low, high = prior.data_range
        raise UserError(
            f"{images.where}: {1 - inside:.0%} of the values lie far outside the prior's range {low:g} .. {high:g} "
            f"{prior.unit}".rstrip()
            + "; give images in its units"
        )
    place = place_of(device)
    prior = prior.requires_grad_(False).eval().to(place)
    prior.error_curve = error_curve(prior, seen, settings.batch_size, place, should_stop)
    result = {"prior": name, "images": len(seen), "size": list(size), "error_curve": prior.error_curve}
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        if target.suffix == ".safetensors":
            prior.save(temporary)
        else:
            temporary.write_text(json.dumps({**result, "data": images.fingerprint}, indent=2) + "\n", encoding="utf-8")
        replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return {"output": str(target), **result}


def quantise_file(name: str, out: Path, bits: int, overwrite: bool = False) -> dict[str, Any]:
    """Write a prior with its weights rounded to 8 or 4 bits; the error curve of the file stays that of the weights before.

    Args:
        name: registered prior, or prior file.
        out: prior file to write.
        bits: 8 or 4.
        overwrite: replace `out`.

    Returns:
        output, bytes, and change: root mean square change of the weights over their own.

    Raises:
        UserError: a format that invsolve does not write, another number of bits, or `out` is there.
    """
    check_target(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: a prior file ends in .safetensors; give it such a name")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace it")
    prior = api.load_prior(name)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.tmp.safetensors")
    try:
        prior.save(temporary, bits)
        before, after = prior.state_dict(), api.load_prior(temporary).state_dict()
        replace(temporary, out)
    finally:
        with suppress(OSError):
            temporary.unlink()
    moved = sum(float((after[key] - value).double().square().sum()) for key, value in before.items())
    size = sum(float(value.double().square().sum()) for value in before.values())
    return {"output": str(out), "bytes": out.stat().st_size, "change": (moved / size) ** 0.5}


def _unseen(prior: Prior, images: data.Images, settings: Settings, say: Callable[[str], None]) -> Any:
    """The rows to measure on: where the prior was trained on this very file, only those it was not trained on."""
    rows = images.select(settings.where)
    known = getattr(prior, "header", {}).get("training", {}).get("data", {})
    if not isinstance(known, dict) or known.get("fingerprint") != images.fingerprint:
        say(f"{len(rows)} images; those that the prior was trained on would make its error look smaller than it is")
        return rows
    unseen = known.get("split", {}).get("validation_rows")
    if unseen is None:
        raise UserError(f"{images.path}: the prior was trained on this file, and does not say which images it left out")
    kept = rows[[row in set(unseen) for row in rows.tolist()]]
    if not len(kept):
        raise UserError(f"{images.path}: the prior was trained on all of these images; give some it has not seen")
    say(f"the prior was trained on this file; measuring on the {len(kept)} images that it was not trained on")
    return kept
