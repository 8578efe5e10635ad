"""Class-conditional networks for one class: the label's embedding is a constant there, and goes into the bias before it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from invsolve.errors import UserError


def folded(weights: Mapping[str, Tensor], label: int | None, where: str) -> dict[str, Tensor]:
    """Weights of the network that a class-conditional one is for a fixed class, without the table of classes.

    Known are guided-diffusion (`label_emb`), EDM's SongUNet and DhariwalUNet (`map_label`) and diffusers' `UNet2DModel`
    (`class_embedding`): all add the class to the embedding of the noise level, once.

    Args:
        weights: the state dict; one without classes is returned as it is.
        label: the class, from 0; None for a network without classes.
        where: the file, for messages.

    Raises:
        UserError: a class is missing, given where there are none, or not one of them.
    """
    kept = dict(weights)
    table = next(
        (name for name in ("label_emb.weight", "map_label.weight", "class_embedding.weight") if name in kept), None
    )
    if table is None:
        if label is not None:
            raise UserError(f"{where}: the network knows no classes; leave class_label out")
        return kept
    rows = kept.pop(table)
    if table == "map_label.weight":
        rows = rows.T
    if rows.ndim != 2:
        raise UserError(f"{where}: its classes are {tuple(rows.shape)}, expected one row per class")
    if label is None:
        raise UserError(f"{where}: the network is class-conditional: give class_label=, from 0 to {len(rows) - 1}")
    if isinstance(label, bool) or not 0 <= label < len(rows):
        raise UserError(f"{where}: class_label must be from 0 to {len(rows) - 1}, got {label}")
    told = rows[label]
    try:
        if table == "label_emb.weight":
            kept["time_embed.2.bias"] = kept["time_embed.2.bias"] + told
        elif table == "class_embedding.weight":
            kept["time_embedding.linear_2.bias"] = kept["time_embedding.linear_2.bias"] + told
        elif "out_conv.weight" in kept:
            # DhariwalUNet adds it after both layers, SongUNet before, times the root of their number.
            kept["map_layer1.bias"] = kept["map_layer1.bias"] + told + kept.pop("map_label.bias", 0)
        else:
            told = len(rows) ** 0.5 * told + kept.pop("map_label.bias", 0)
            kept["map_layer0.bias"] = kept["map_layer0.bias"] + kept["map_layer0.weight"] @ told
    except (KeyError, RuntimeError):
        raise UserError(f"{where}: its classes do not fit the embedding of its noise levels; copy it again") from None
    return kept
