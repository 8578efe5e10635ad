"""What a trained prior depends on: the settings of a training, validated; and where and how it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from invsolve.errors import UserError, suggestion
from invsolve.registry.parameters import build, parameters


@dataclass(frozen=True)
class Settings:
    """Everything, beside the images themselves, that the weights depend on.

    Args:
        dataset: where the images are in the file; default "x".
        axes: names of its axes, such as "item:row:column:channel"; default the dataset's attribute `axes`, and for
            "x" (item, channel, *spatial).
        slice_axis: the axis of a volume along which it is cut into 2-D images.
        layout: how to read files that are no HDF5 of images x (NIfTI, DICOM, TIFF, ...); default the one that knows them.
        read: options of that layout, such as {"view": "coronal"}.
        where: only the items whose label in a dataset has a value, as "modality=CT".
        range: physical values of network -1 and +1, as "LOW:HIGH"; "type" for the integer type's range; "auto" for that
            of 8-bit data, else the 0.1 % and 99.9 % quantiles.
        clip: limit the images to that range.
        unit: physical unit; default the dataset's attribute `units` or `unit`.
        groups: dataset of labels (patients) that never cross the split.
        split: dataset of labels "train" and "val"; anything else is left out.
        validation: share of the images held out, where the file has no split.
        steps: how many; default 20000, or as many as `minutes` allow.
        minutes: end after this time; the learning rate then falls with the clock, so that only `steps` resumes to the bit.
        batch_size: images a step, over all processes.
        kind: what the network predicts and which noise it learns from. "edm": Karras 2022. "flow": the velocity n - x0 of flow
            matching (Lipman 2023); ln sigma is the logit of its time, so that sigma_mean=0, sigma_std=1 is the logit-normal of
            Esser 2024. "pfgm++": EDM's prediction from the heavy-tailed noise of PFGM++ (Xu 2023).
        augmented: dimensions D of "pfgm++": its noise is Student's t with D degrees of freedom.
        network: "normed", a U-Net with group norms; "fast", for images: a residual U-Net without norms on the folded image, which
            denoises as well in a third of the time.
        width: channels of the finest level; a multiple of 8. Level k has k times as many; of "fast" 2, 3, 4, 6 times as many.
        levels: resolutions of the U-Net, each half the size of the one before.
        blocks: residual blocks a level; of "fast" twice as many.
        dropout: probability.
        crop: size of random crops, one number or one an axis; default whole images.
        patch: side of the patches, pixels, by which images of one size are known, each with its place (PaDIS, Hu 2024): for few
            images, and for images too large for the network to see whole. Default whole images.
        flip: spatial axes along which images are mirrored at random, such as [1] for left and right.
        rotate: standard deviation of random rotations in the last two axes, degrees.
        zoom: random magnification up to 1 + zoom either way.
        shift: random shifts up to so many pixels; edges are continued outwards.
        warped: share of the images that are turned, magnified and shifted by parts of pixels; interpolation smooths them, and
            the others keep the grain that a denoiser must know.
        gain: half of the images are multiplied by 1 - gain to 1 + gain.
        phase: strength of smooth random phases, radians; above 0, magnitude images are trained on as complex ones, in two
            channels (real, imaginary), with another phase each time.
        outliers: share of the images that are white noise of random strength instead: a network without norms must be told
            what to do far from its images. Their loss counts by its logarithm.
        balance: 0 trains on all images equally often, 1 on all `groups`, 0.5 between them.
        weight: dataset of numbers, how often an image is trained on compared with others; goes before `balance`.
        resident: keep the images on the device and prepare batches there, all of a batch at once; "auto" does so on a GPU
            that has room for them.
        compile: compile the network (minutes, once); "auto" does so on a GPU. What cannot be compiled is run as it is.
        start: registered prior or prior file whose weights to begin with, wherever names and shapes agree; none for random.
        lr: largest learning rate of AdamW.
        warmup: steps over which it rises, a tenth of the run at most; then it falls as a cosine.
        clip_gradient: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones kept.
        precision: of the network; "auto" is bf16 on a GPU, float32 elsewhere.
        sigma_mean, sigma_std: of ln sigma in training (Karras 2022).
        sigma_data: standard deviation of the images in network units.
        sigma_max: largest noise level, network units.
        immiscible: of this many noise draws the nearest to the image is used (Li 2025); 1 for none.
        stable_target: images of the reference batch of the stable target field (Xu 2023); 0 for none.
        seed: of every random number.
        log_every: steps a line of the loss curve.
        validate_every: steps between validations; default a twentieth of the run and at least 50, or 500 by the clock.
        store: precision of the file's weights.
    """

    dataset: str | None = None
    axes: str | None = None
    slice_axis: int | None = None
    layout: str | None = None
    read: dict[str, Any] | None = None
    where: str | None = None
    range: str = "auto"
    clip: bool = False
    unit: str | None = None
    groups: str | None = None
    split: str | None = None
    validation: float = 0.1
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    kind: Literal["edm", "flow", "pfgm++"] = "edm"
    augmented: int = 128
    network: Literal["normed", "fast"] = "normed"
    width: int = 32
    levels: int = 4
    blocks: int = 1
    dropout: float = 0.1
    crop: int | list[int] | None = None
    patch: int | None = None
    flip: list[int] | None = None
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    warped: float = 1.0
    gain: float = 0.0
    phase: float = 0.0
    outliers: float = 0.0
    balance: float = 0.0
    weight: str | None = None
    resident: Literal["auto", "yes", "no"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    start: str | None = None
    lr: float = 5e-4
    warmup: int = 300
    clip_gradient: float = 1.0
    ema: float = 0.9995
    precision: Literal["auto", "float32", "bf16"] = "auto"
    sigma_mean: float = -1.0
    sigma_std: float = 1.5
    sigma_data: float = 0.5
    sigma_max: float = 40.0
    immiscible: int = 1
    stable_target: int = 0
    seed: int = 0
    log_every: int = 50
    validate_every: int | None = None
    store: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        at_least_one = (
            "steps",
            "batch_size",
            "augmented",
            "levels",
            "blocks",
            "patch",
            "immiscible",
            "log_every",
            "validate_every",
        )
        _require(self, at_least_one, lambda v: v >= 1, "at least 1")
        positive = ("minutes", "lr", "clip_gradient", "sigma_std", "sigma_data")
        _require(self, positive, lambda v: v > 0, "above 0")
        _require(
            self,
            ("seed", "warmup", "stable_target", "rotate", "zoom", "shift", "phase"),
            lambda v: v >= 0,
            "at least 0",
        )
        _require(self, ("balance", "warped"), lambda v: 0 <= v <= 1, "in [0, 1]")
        _require(self, ("dropout", "ema", "gain", "outliers"), lambda v: 0 <= v < 1, "in [0, 1)")
        _require(self, ("validation",), lambda v: 0 < v < 1, "in (0, 1)")
        _require(self, ("width",), lambda v: v > 0 and v % 8 == 0, "a multiple of 8")
        _require(self, ("sigma_max",), lambda v: v > 1, "above 1")
        if self.balance and not self.groups and not self.weight:
            raise UserError("training: balance needs groups, the dataset of labels that are to count alike")
        if self.immiscible > 1 and self.stable_target:
            raise UserError(
                "immiscible and stable_target change the same thing, the pairing of images and noise: use one"
            )

    @property
    def total(self) -> int | None:
        """Steps of the whole run; None when only the clock ends it."""
        return self.steps if self.steps or self.minutes else 20000

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or (max(50, self.total // 20) if self.total else 500)

    @property
    def warm_steps(self) -> int:
        """Steps over which the learning rate rises: a tenth of a short run."""
        return min(self.warmup, self.total // 10) if self.total else self.warmup

    def config(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a run, in which a snapshot must agree; `data` says which images."""
        return {**asdict(self), "data": dict(data)}


def _require(settings: Settings, names: tuple[str, ...], good: Any, text: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not good(value):
            raise UserError(f"training: {name}={value}, expected {text}")


def make_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from key=value options.

    Raises:
        UserError: an unknown name, or a value of the wrong type or out of its range.
    """
    known = [p.name for p in parameters(Settings)]
    for key in given:
        if key not in known:
            raise UserError(f"training has no setting {key!r}.{suggestion(key, known)}")
    return build(Settings, "training", "settings", dict(given))


def digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """One training: which file becomes which, and what changes neither a number nor the weights.

    Args:
        images: HDF5 file.
        out: prior file to write, .safetensors.
        settings: what the weights depend on.
        device: "cpu", "cuda", "cuda:1"; None takes a GPU when there is one.
        snapshot_seconds: between snapshots.
        snapshot_steps: also every so many steps.
        overwrite: replace `out`, and a snapshot of another configuration.
    """

    images: Path
    out: Path
    settings: Settings
    device: str | None = None
    snapshot_seconds: float = 120.0
    snapshot_steps: int | None = None
    overwrite: bool = False

    @property
    def snapshot(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial.pt")

    @property
    def preview(self) -> Path:
        """The averaged weights at the last snapshot, a checkpoint that can be tried while the training runs."""
        return self.out.with_name(f"{self.out.stem}.preview.safetensors")

    @property
    def curve(self) -> Path:
        return self.out.with_name(f"{self.out.name}.curve.jsonl")

    @property
    def sheet(self) -> Path:
        return self.out.with_name(f"{self.out.name}.samples.png")
