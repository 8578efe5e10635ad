"""The options of a reconstruction on the command line, one for each field of `Options`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from invsolve.engine.declaration import Option
from invsolve.engine.options import Options, declared


def with_options(command: Callable[..., None], without: Collection[str] = ()) -> Callable[..., None]:
    """A command whose keyword `options` is read from one option of the command line for each that is declared.

    Args:
        command: a function.
        without: options that it does not take, as another parameter says what they would; they keep their defaults.
    """
    signature = inspect.signature(command, eval_str=True)
    taken = [option for option in declared() if option.name not in without]
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += map(_parameter, taken) if parameter.name == "options" else [parameter]

    @functools.wraps(command)
    def read(**values: Any) -> None:
        options = Options(**{option.name: values.pop(option.name) for option in taken})
        command(**values, options=options)

    read.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    read.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return read


def _parameter(option: Option) -> inspect.Parameter:
    # Typer learnt of `Literal` late, and its own complaint would name the choices without what they mean.
    kind: Any = type(option.choices[0]) if option.choices else option.written
    flags = [f"--{option.name.replace('_', '-')}"]
    about: dict[str, Any] = {"help": option.brief}
    # Long names in the column of types would leave no room for the texts.
    if 0 < len(names := "|".join(map(str, option.choices))) <= 8:
        about["metavar"] = names
    # The first of the choices, nothing and off need no line of their own.
    if option.choices or not option.default:
        about["show_default"] = False
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[kind, typer.Option(*flags, **about)],
    )
