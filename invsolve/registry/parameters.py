"""Parameters of plugins: read from their keyword arguments, validated, listed, and explained in one line when wrong."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np
import pydantic
import tifffile
from PIL import Image
from torch import Tensor

from invsolve.contracts.arguments import from_array
from invsolve.contracts.operator import Operator
from invsolve.contracts.per_item import made_for_items
from invsolve.errors import UserError, suggestion


@dataclass(frozen=True)
class Parameter:
    """One row of a plugin's parameter table."""

    name: str
    type: str
    default: Any
    required: bool
    text: str


def _png(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.array(picture)


#: Files of arrays, by the ends of their names.
_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, mmap_mode="r", allow_pickle=False),
    ".tif": tifffile.imread,
    ".tiff": tifffile.imread,
    ".png": _png,
}


def _to_tensor(value: Any) -> Any:
    """Accept a tensor, an array, a (nested) list of numbers, or the path of a .npy, .tif or .png file."""
    if isinstance(value, str):
        path = Path(value)
        if path.suffix.lower() not in _READERS:
            raise ValueError("expected numbers or the path of a .npy, .tif or .png file")
        if not path.exists():
            raise ValueError(f"no such file {value!r}")
        # Of a pipe reading would wait for ever.
        if not path.is_file():
            raise ValueError(f"{value!r} is no file")
        try:
            value = _READERS[path.suffix.lower()](path)
        except Exception as error:  # NumPy and others raise many kinds on damaged headers
            raise ValueError(f"{value!r} cannot be read ({' '.join(str(error).split())})") from None
        if value.dtype.kind not in "biufc":
            raise ValueError(f"the file holds {value.dtype}")
        value = np.array(value)
    if isinstance(value, np.ndarray):
        value = from_array(value, "the array")
    if isinstance(value, list | tuple):
        # Double precision: angles are compared with one another to find symmetries.
        value = from_array(np.asarray(value), "the list")
    if not isinstance(value, Tensor):
        raise ValueError("expected an array")
    return value


class _Refused(UserError):
    """What the object itself says of its text, which says it all."""


def _from_text(kind: Any, value: Any) -> Any:
    """Accept an object that can be stated as text, its text, or its arguments as a table."""
    if value is None or isinstance(value, kind):
        return value
    if not isinstance(value, dict | str):
        raise ValueError(f"expected a {kind.__name__}, its text or a table")
    try:
        return kind.from_table(value) if isinstance(value, dict) else kind.from_text(value)
    except UserError as error:
        raise _Refused(str(error)) from None


def _annotation(hint: Any) -> Any:
    """Replace Tensor by a type that pydantic checks, anywhere in a union."""
    if hint is Tensor:
        return typing.Annotated[Any, pydantic.BeforeValidator(_to_tensor)]
    arguments = typing.get_args(hint)
    stated = next((a for a in (hint, *arguments) if hasattr(a, "from_text")), None)
    if stated is not None:
        return typing.Annotated[Any, pydantic.BeforeValidator(partial(_from_text, stated))]
    if arguments and Tensor in arguments:
        return typing.Union[tuple(_annotation(a) for a in arguments)]  # noqa: UP007
    return hint


def _readable(hint: Any) -> str:
    if isinstance(hint, type):
        return "array" if hint is Tensor else hint.__name__
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(repr(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, __import__("types").UnionType):
        return " | ".join("None" if a is type(None) else _readable(a) for a in typing.get_args(hint))
    return str(hint).replace("typing.", "")


def _signature(plugin: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    function = plugin.__init__  # type: ignore[misc]
    signature = dict(inspect.signature(function).parameters)
    signature.pop("self")
    for parameter in list(signature.values()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            signature.pop(parameter.name)
    owner = plugin if hasattr(plugin, "__dataclass_fields__") else function
    hints = typing.get_type_hints(owner)
    return signature, hints


@cache
def parameters(plugin: type) -> tuple[Parameter, ...]:
    """The parameters of a plugin class, with the text of its docstring's Args section."""
    signature, hints = _signature(plugin)
    texts: dict[str, str] = {}
    for doc in (plugin.__doc__, plugin.__init__.__doc__):  # type: ignore[misc]
        texts |= {p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(doc or "").params}
    for names in [n for n in texts if "," in n]:
        texts |= {name.strip(): texts[names] for name in names.split(",")}
    return tuple(
        Parameter(
            name,
            _readable(hints.get(name, Any)),
            None if p.default is p.empty else p.default,
            p.default is p.empty,
            texts.get(name, ""),
        )
        for name, p in signature.items()
    )


@cache
def _model(plugin: type) -> type[pydantic.BaseModel]:
    signature, hints = _signature(plugin)
    fields: dict[str, Any] = {
        name: (_annotation(hints.get(name, Any)), ... if p.default is p.empty else p.default)
        for name, p in signature.items()
    }
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return pydantic.create_model(plugin.__name__, __config__=config, **fields)


def build(plugin: type, kind: str, name: str, given: dict[str, Any]) -> Any:
    """Validate keyword arguments and make the plugin.

    Raises:
        UserError: an unknown or missing parameter, or a value of the wrong type or out of its range.
    """
    check(plugin, kind, name, given)
    model = _model(plugin)(**given)
    values = {p.name: getattr(model, p.name) for p in parameters(plugin)}
    made = _made(plugin, name, values)
    if hasattr(plugin, "parameters_given"):
        made.parameters_given = {key: _recorded(values[key]) for key in given}
    return made


def _recorded(value: Any) -> Any:
    """A parameter as records and files hold it: what can be stated as text by that text."""
    return value.to_text() if hasattr(value, "to_text") else value


def _made(plugin: type, name: str, values: dict[str, Any]) -> Any:
    """The plugin; an operator for each item where values carry an item axis.

    Raises:
        UserError: values for different numbers of items, or what the plugin says to those of one item.
    """
    if not issubclass(plugin, Operator):
        return plugin(**values)
    values = plugin.spelled_out(values)
    carried = {k: v for k, v in values.items() if isinstance(v, Tensor) and plugin.carries_items(k, v)}
    # What has one entry serves all items, as everywhere else.
    counts = {key: len(value) for key, value in carried.items() if len(value) != 1}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        told = ", ".join(f"{key} of {count}" for key, count in counts.items())
        raise UserError(f"operator {name!r}: parameters are for different numbers of items ({told}); give one for each")
    make = partial(_of_item, plugin, values, carried)
    if not counts:
        return make(0)
    items = next(iter(counts.values()))
    for item in range(items):
        try:
            make(item)
        except UserError as error:
            raise UserError(f"{error} (item {item} of {items})") from None
    return made_for_items(items, make)


def _of_item(plugin: type, values: dict[str, Any], carried: dict[str, Tensor], item: int) -> Any:
    return plugin(**values | {key: value[item if len(value) > 1 else 0] for key, value in carried.items()})


def check(plugin: type, kind: str, name: str, given: dict[str, Any], later: Collection[str] = ()) -> None:
    """Validate keyword arguments by their types, without making the plugin.

    Args:
        plugin, kind, name: whose parameters they are.
        given: the arguments.
        later: parameters that may be missing, because they are filled in later.

    Raises:
        UserError: an unknown or missing parameter, or a value of the wrong type.
    """
    known = {p.name: p for p in parameters(plugin)}
    for key in given:
        if key not in known:
            raise UserError(f"{kind} {name!r} has no parameter {key!r}.{suggestion(key, known)}")
    try:
        _model(plugin)(**given)
    except pydantic.ValidationError as error:
        for wrong in error.errors():
            key = str(wrong["loc"][0])
            if wrong["type"] == "missing" and key in later:
                continue
            if wrong["type"] == "missing":
                raise UserError(
                    f"{kind} {name!r} needs {key}=: {known[key].type}. {known[key].text}".rstrip()
                ) from None
            refused = wrong.get("ctx", {}).get("error")
            if isinstance(refused, _Refused):
                raise UserError(f"{kind} {name!r}: {refused}") from None
            what = wrong["msg"].removeprefix("Value error, ")
            value = _short(given[key])
            raise UserError(f"{kind} {name!r}: {key}={value} is not {known[key].type}: {what}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
