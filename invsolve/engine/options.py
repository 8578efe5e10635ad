"""Every option of a reconstruction, declared once: signature, command line, pipeline step, record and resume derive from it.

A new option is one more field of `Options`. Nothing here imports torch, so that `--help` answers at once.
"""

import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_type_hints

from invsolve.engine.declaration import Option
from invsolve.errors import UserError, suggestion

if TYPE_CHECKING:
    import torch

    from invsolve.contracts.scale import Scale

#: Stands in the docstring of a function for the texts of all options, and in its signature for the options.
_PLACE = "**options"
F = TypeVar("F", bound=Callable[..., Any])


def _read_device(value: Any) -> str:
    if isinstance(value, str) or type(value).__module__ == "torch":
        return str(value)
    raise UserError(f"device must be text such as cpu or cuda:1, or a torch.device, got {value!r}")


def _read_dtype(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _read_scale(value: Any) -> Any:
    from invsolve.contracts.scale import Scale

    if isinstance(value, Scale) or (isinstance(value, str) and value == "auto"):
        return value
    if isinstance(value, str):
        low, _, high = value.partition(":")
        pair: Sequence[Any] = (low, high)
    elif isinstance(value, Sequence) and len(value) == 2:
        pair = value
    else:
        raise UserError(f"scale must be a (low, high) pair, LOW:HIGH, a Scale, 'auto' or None, got {value!r}")
    try:
        bottom, top = (float(end) for end in pair)
    except (TypeError, ValueError):
        raise UserError(f"scale {value!r}: write LOW:HIGH, such as 0:0.03, or auto") from None
    if not (top > bottom and math.isfinite(top - bottom)):
        raise UserError(f"scale: the range must rise, got {bottom:g} .. {top:g}")
    return bottom, top


def _option(
    default: Any,
    text: str,
    *,
    decides: bool = True,
    at_least: float | None = None,
    at_most: float | None = None,
    meanings: Mapping[Any, str] | None = None,
    written: Any = None,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of `Options`; the arguments as in `Option`."""
    about = {"text": text, "decides": decides, "meanings": meanings or {}, "written": written, "read": read}
    return field(default=default, metadata=about | {"at_least": at_least, "at_most": at_most})


@dataclass(frozen=True)
class Options:
    """How to reconstruct: each option with its type, default, text, bounds, and whether it decides the result.

    Values are checked, and kept as plain numbers and texts: a dtype or a device as its name, "LOW:HIGH" as a pair.

    Args:
        **options:

    Raises:
        UserError: a value of the wrong type or out of its range.
    """

    samples: int = _option(1, "samples per item; 2 or more for an uncertainty.", at_least=1, at_most=10**6)
    seed: int = _option(
        0,
        "the same seed gives the same samples. A sample depends on (inputs, prior, parameters, seed, item, sample) alone.",
        at_least=0,
    )
    batch_size: int | None = _option(
        None,
        "samples, or slices of a volume, in the network at once. Memory grows with it; default 8, on a GPU 16.",
        at_least=1,
        decides=False,
    )
    device: "str | torch.device" = _option(  # noqa: RUF009 - a field
        "cpu", "cpu, cuda or cuda:1. Where to calculate.", decides=False, written=str, read=_read_device
    )
    dtype: "str | torch.dtype" = _option(  # noqa: RUF009
        "float32",
        "float32 or float64: of operators and states.",
        written=Literal["float32", "float64"],
        read=_read_dtype,
    )
    scale: "Scale | tuple[float, float] | str | None" = _option(  # noqa: RUF009
        None,
        "physical values of the prior's range: LOW:HIGH, or auto. From Python also a (low, high) pair or a Scale; auto "
        "estimates it from the data; without it the file's or the prior's own holds.",
        written=str | None,
        read=_read_scale,
    )
    noise_correlation: float = _option(
        0.0,
        "items that share some noise. How alike the noise of neighbouring items is, so that slices sampled one by one do not "
        "flicker: the width, in items, of a Gaussian window; 0 not at all, infinite the same noise for all.",
        at_least=0,
    )
    planes: Literal[1, 3] = _option(
        1,
        "3: the prior along all axes. It then denoises a volume's slices along all three and averages the estimates, at three "
        "times the network calls; for strategies that couple slices, and operators of volumes. Voxels should be cubes.",
        meanings={1: "the slices of the file", 3: "also those along both other axes"},
    )
    precision: Literal["float32", "bf16"] = _option(
        "float32",
        "bf16: a faster network. It calculates in bfloat16 where the hardware has it; the rest stays in `dtype`.",
    )
    tile: int | None = _option(
        None,
        "side of the tiles of large images, in pixels. In them the prior denoises images that are larger, overlapping and "
        "blended, so that memory does not grow with the image; 0 never. Default 256, for images longer than 512.",
        at_least=0,
    )
    deterministic: bool = _option(
        False,
        "the same bits each time. Only torch's deterministic algorithms, slower on a GPU: a setting of the whole process, put "
        "back after the run; an operation that has none is an error.",
    )

    def __post_init__(self) -> None:
        for option in declared():
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))

    @property
    def rows(self) -> int:
        """What goes through the network at once: `batch_size`, or the device's default."""
        return self.batch_size or (16 if str(self.device).startswith("cuda") else 8)

    def record(self, **resolved: Any) -> dict[str, Any]:
        """The options that decide the result, name to value, as JSON.

        Args:
            **resolved: what an option turned out to stand for in this run, where that is more than what was given.
        """
        return {o.name: resolved.get(o.name, _json(getattr(self, o.name))) for o in declared() if o.decides}


def _json(value: Any) -> Any:
    return "infinite" if isinstance(value, float) and math.isinf(value) else value


class Keywords(TypedDict, total=False):
    """The options as keywords, for type checkers and editors, which cannot derive them; a test compares it with `Options`."""

    samples: int
    seed: int
    batch_size: int | None
    device: "str | torch.device"
    dtype: "str | torch.dtype"
    scale: "Scale | tuple[float, float] | str | None"
    noise_correlation: float
    planes: Literal[1, 3]
    precision: Literal["float32", "bf16"]
    tile: int | None
    deterministic: bool


@cache
def declared() -> tuple[Option, ...]:
    """Every option, in order."""
    return tuple(
        Option(f.name, f.default, hint=f.type, **{**f.metadata, "written": f.metadata["written"] or f.type})
        for f in fields(Options)
    )


def make_options(given: Mapping[str, Any], of: str) -> Options:
    """Options from keywords.

    Args:
        given: name to value.
        of: who takes them, for the message.

    Raises:
        UserError: an unknown name, or a value of the wrong type or out of its range.
    """
    known = [option.name for option in declared()]
    for name in given:
        if name not in known:
            raise UserError(f"{of} has no option {name!r}.{suggestion(name, known)}")
    return Options(**given)


def with_options(function: F) -> F:
    """Write out what `**options` stands for, in the signature and in the docstring's Args, for help() and notebooks."""
    import torch

    from invsolve.contracts.scale import Scale

    hints = get_type_hints(Options, localns={"torch": torch, "Scale": Scale})
    signature = inspect.signature(function)
    given = list(signature.parameters.values())
    keywords = [
        inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=hints[o.name])
        for o in declared()
    ]
    place = next(k for k, p in enumerate(given) if p.kind is p.VAR_KEYWORD)
    function.__signature__ = signature.replace(parameters=[*given[:place], *keywords])  # type: ignore[attr-defined]
    function.__annotations__.pop(given[place].name)
    function.__annotations__ |= hints
    function.__doc__ = _with_texts(function.__doc__)
    return function


def _with_texts(doc: str | None) -> str | None:
    """A docstring with the texts of all options in place of the line `**options: ...`."""
    lines: list[str] = []
    for line in (doc or "").split("\n"):
        if not line.strip().startswith(f"{_PLACE}:"):
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for o in declared():
            text = f"{o.name}: {o.text}"
            lines += textwrap.wrap(text, 120, initial_indent=indent, subsequent_indent=f"{indent}    ")
    return "\n".join(lines) if doc else doc


Options.__doc__ = _with_texts(Options.__doc__)
