"""Parameters of plugins: read from their keyword arguments, validated, listed, and explained in one line when wrong."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterator
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

from invsolve.contracts.arguments import ARRAY_FILES, from_array
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


#: Files of arrays, by the ends of their names: all of `ARRAY_FILES`, which files from elsewhere may not name.
_READERS: dict[str, Callable[[Path], Any]] = dict(
    zip(
        ARRAY_FILES,
        (lambda path: np.load(path, mmap_mode="r", allow_pickle=False), tifffile.imread, tifffile.imread, _png),
        strict=True,
    )
)


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


def with_preset(plugin: type, kind: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments with those of the preset that `preset` names; what is given beside it wins.

    Raises:
        UserError: no such preset.
    """
    presets = getattr(plugin, "presets", None)
    if not presets or "preset" not in given:
        return given
    rest = {key: value for key, value in given.items() if key != "preset"}
    if not isinstance(given["preset"], str) or given["preset"] not in presets:
        raise UserError(
            f"{kind} {name!r} has no preset {given['preset']!r}.{suggestion(str(given['preset']), presets)}"
        )
    return {**presets[given["preset"]], **rest}


def build(plugin: type, kind: str, name: str, given: dict[str, Any]) -> Any:
    """Validate keyword arguments and make the plugin; `preset` stands for the arguments of that preset of the class.

    Raises:
        UserError: an unknown or missing parameter, or a value of the wrong type or out of its range.
    """
    given = with_preset(plugin, kind, name, given)
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
    given = with_preset(plugin, kind, name, given)
    known = {p.name: p for p in parameters(plugin)}
    for key in given:
        if key not in known:
            raise UserError(f"{kind} {name!r} has no parameter {key!r}.{suggestion(key, known)}")
    for key, value in given.items():
        # What would be taken for the number 1 or 0.
        if isinstance(value, bool) and not {"bool", "Any", "object"} & set(re.findall(r"\w+", known[key].type)):
            raise UserError(
                f"{kind} {name!r}: {key}={value} is not {known[key].type}; give a number, or leave {key} out"
            )
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
    if kind == "operator":
        # Arrays are the operator's to judge, which knows more of them.
        _refuse_odd_numbers(name, {k: v for k, v in given.items() if "array" not in known[k].type or np.isscalar(v)})


def _refuse_odd_numbers(name: str, given: dict[str, Any]) -> None:
    """Refuse NaN, which an operator may take for "not given", and whole numbers that no tensor can count.

    Raises:
        UserError: names the parameter.
    """
    for key, value in given.items():
        for number in _numbers(value):
            if number != number:
                raise UserError(
                    f"operator {name!r}: {key}={_short(value)} holds NaN; give a number, or leave {key} out"
                )
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"operator {name!r}: {key}={_short(value)} is too large; whole numbers go up to 2^63")


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value, through lists and tables."""
    if isinstance(value, int | float | np.number):
        yield value  # type: ignore[misc]
    elif isinstance(value, dict):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
