"""The steps that a pipeline is made of, each with its typed parameters; the same objects in a file and in Python."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import ConfigDict, Field

from invsolve.engine.options import Options, declared
from invsolve.pipeline.parameters import parameter
from invsolve.pipeline.variables import EnvironmentText, is_open

Settings = dict[str, Any]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

#: What a step gives to later ones: images, a measurement, a result, or a file that no step reads.
KINDS = ("images", "measurement", "result", "file")


class Step(pydantic.BaseModel):
    """One step. A value may also be "${variable}" or {"sweep": [...]}; it is checked when that is filled in.

    Attributes:
        inputs: parameter that names an earlier step -> the kinds of output that it may give.
        gives: the kind of this step's output; None where it depends on the input.
        free: parameters that change how the output is made or where it goes, not what is in it.
        resumes: whether the step goes on by itself from what an interrupted run left in its folder.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    gives: ClassVar[str | None] = None
    free: ClassVar[frozenset[str]] = frozenset({"to"})
    resumes: ClassVar[bool] = False

    type: str

    @pydantic.field_validator("*", mode="wrap")
    @classmethod
    def _leave_open(cls, value: Any, inner: pydantic.ValidatorFunctionWrapHandler) -> Any:
        if is_open(value):
            return value
        if not isinstance(value, EnvironmentText):
            return inner(value)
        # The environment holds text only; where text does not fit, it is read as TOML, like --set.
        try:
            return inner(str(value))
        except pydantic.ValidationError as error:
            try:
                return inner(tomllib.loads(f"v = {value}")["v"])
            except (tomllib.TOMLDecodeError, RecursionError, pydantic.ValidationError):
                raise error from None

    @property
    def output_name(self) -> str:
        """Name of the file that the step writes; empty for none."""
        return ""

    @classmethod
    def describe(cls) -> str:
        """What the step does, in one line."""
        return (cls.__doc__ or "").strip().split("\n")[0]


class _Writing(Step):
    to: str | None = None
    """Where a copy of the output goes, seen from the pipeline file; ${branch} stands for the branch of a sweep."""


class Load(Step):
    """Take a file from outside: a measurement, images or a result. Nothing is copied."""

    type: Literal["load"] = "load"
    path: str
    """The file or folder, seen from the pipeline file."""
    layout: str | None = None
    """Layout of the file, where it is not recognised."""
    read: Settings = {}
    """How to read it: the layout's parameters, such as {bin = 4, thin = 2}."""

    free: ClassVar[frozenset[str]] = frozenset({"path"})


class Sample(_Writing):
    """Draw images from a prior alone, for tests and demonstrations."""

    type: Literal["sample"] = "sample"
    prior: str
    """Registered prior or checkpoint file."""
    count: Count = 8
    """Images."""
    size: Count | None = None
    """Pixels a side, where the prior leaves it open; default 128."""
    solver: str = "dpmpp-2m"
    """Name of the solver."""
    steps: Count = 32
    """Noise levels."""
    seed: Seed = 0
    """Image i depends on seed and i alone."""
    batch_size: Count = 8
    """Images that go through the network at once."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""

    gives: ClassVar[str | None] = "images"
    free: ClassVar[frozenset[str]] = frozenset({"to", "batch_size", "device"})

    @property
    def output_name(self) -> str:
        return "images.h5"


class Preprocess(_Writing):
    """Read a measurement or images as the layout does (flat field, -log, rings, centre, binning) and keep what it made."""

    type: Literal["preprocess"] = "preprocess"
    input: str
    """Step that gives the measurement or the images."""
    read: Settings = {}
    """The layout's parameters, on top of those of the step that loaded the file."""
    noise: str | None = None
    """gaussian:SIGMA or poisson:GAIN, where the file does not say."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("measurement", "images")}

    @property
    def output_name(self) -> str:
        return "preprocessed.h5"


class Simulate(_Writing):
    """Measure known images with an operator: y = A(x) + noise."""

    type: Literal["simulate"] = "simulate"
    input: str
    """Step that gives the images."""
    operator: str
    """Registered operator."""
    set: Settings = {}
    """The operator's parameters, such as {angles = 30}."""
    noise: str = "gaussian:0.01"
    """gaussian:SIGMA or poisson:GAIN, in units of the measurement."""
    seed: Seed = 0
    """Seed of the noise."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("images",)}
    gives: ClassVar[str | None] = "measurement"

    @property
    def output_name(self) -> str:
        return "scan.h5"


if TYPE_CHECKING:
    _WithOptions = _Writing
else:
    _WithOptions = pydantic.create_model(
        "_WithOptions", __base__=_Writing, **{option.name: parameter(option) for option in declared()}
    )


class Reconstruct(_WithOptions):
    """Draw samples of every item of a measurement: mean, standard deviation, samples."""

    type: Literal["reconstruct"] = "reconstruct"
    input: str
    """Step that gives the measurement."""
    prior: str | None = None
    """Registered prior or checkpoint file; linear and tv need none."""
    strategy: str = "auto"
    """Registered strategy."""
    set: Settings = {}  # noqa: RUF012 - copied by pydantic
    """The strategy's parameters, such as {steps = 100}."""
    noise: str | None = None
    """gaussian:SIGMA or poisson:GAIN, where the file does not say."""
    slices: str | None = None
    """Only these items of the file, START:STOP."""
    workers: Count | None = None
    """Processes to share items; on cuda one a GPU. Needs Dask."""
    scheduler: str | None = None
    """Dask scheduler whose workers to use instead, tcp://HOST:PORT."""
    snapshot_every: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between snapshots, from which a killed run goes on."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("measurement",)}
    gives: ClassVar[str | None] = "result"
    free: ClassVar[frozenset[str]] = frozenset({"to", "workers", "scheduler", "snapshot_every"}).union(
        option.name for option in declared() if not option.decides
    )
    resumes: ClassVar[bool] = True

    if TYPE_CHECKING:
        # The options are parameters too, and each may be a variable or a sweep.
        def __init__(self, **parameters: Any) -> None: ...

    @property
    def options(self) -> Options:
        """The options of the reconstruction, once variables and sweeps are filled in.

        Raises:
            UserError: a value out of its range.
        """
        return Options(**{option.name: getattr(self, option.name) for option in declared()})

    @property
    def output_name(self) -> str:
        return "recon.h5"


class Evaluate(_Writing):
    """Compare a result with the truth: PSNR, SSIM, NRMSE, coverage of the uncertainty."""

    type: Literal["evaluate"] = "evaluate"
    input: str
    """Step that gives the result."""
    truth: str | None = None
    """Step that gives the true images; default the truth that the result carries."""
    data_range: Annotated[float, Field(gt=0)] | None = None
    """Span of values for PSNR and SSIM; default the truth's."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("result",), "truth": ("images",)}
    gives: ClassVar[str | None] = "file"

    @property
    def output_name(self) -> str:
        return "metrics.json"


class Report(_Writing):
    """Draw a result: truth, linear baseline, mean, standard deviation, samples, error, residual by step."""

    type: Literal["report"] = "report"
    input: str
    """Step that gives the result."""
    truth: str | None = None
    """Step that gives the true images; default the truth that the result carries."""
    items: list[Annotated[int, Field(ge=0)]] | None = None
    """Items to show; default all on a page, the first four in a picture."""
    format: Literal["html", "png"] = "html"
    """A page, or a picture."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("result",), "truth": ("images",)}
    gives: ClassVar[str | None] = "file"

    @property
    def output_name(self) -> str:
        return f"report.{self.format}"


class Export(_Writing):
    """Write images for other programs: NumPy, TIFF, NIfTI, PNG, or HDF5 that later steps take as images."""

    type: Literal["export"] = "export"
    input: str
    """Step that gives the result or the images."""
    format: Literal["npy", "tiff", "nifti", "png", "h5"]
    """npy and h5: all, (items, channels, rows, columns); tiff: one page per item; nifti: a volume of slices; png: one item."""
    what: Literal["mean", "std", "linear", "truth"] = "mean"
    """Which images of a result."""
    item: Annotated[int, Field(ge=0)] = 0
    """The item that a png shows."""
    window: list[float] | None = None
    """Values that a png shows black and white, [low, high]; default the item's least and largest."""
    spacing: list[float] | None = None
    """Size of a voxel along columns, rows and slices in mm, for nifti; default 1."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("result", "images")}

    @pydantic.model_validator(mode="after")
    def _lengths(self) -> Self:
        for name, length in {"window": 2, "spacing": 3}.items():
            value = getattr(self, name)
            if isinstance(value, list) and not is_open(value) and len(value) != length:
                raise ValueError(f"{name} {value}: expected {length} numbers")
        return self

    @property
    def output_name(self) -> str:
        return "images" + {"tiff": ".tif", "nifti": ".nii.gz"}.get(self.format, f".{self.format}")


AnyStep = Load | Sample | Preprocess | Simulate | Reconstruct | Evaluate | Report | Export
#: Type as written in a file -> class.
TYPES: dict[str, type[Step]] = {
    cls.model_fields["type"].default: cls
    for cls in (Load, Sample, Preprocess, Simulate, Reconstruct, Evaluate, Report, Export)
}


def sweep(*values: Any) -> Any:
    """A value that stands for several: the step, and all that follow from it, run once for each."""
    return {"sweep": list(values)}
