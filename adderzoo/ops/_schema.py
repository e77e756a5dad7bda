"""The arguments of the operators, as their schemas have them."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

from ._pytorch import defaults_of

_Result = TypeVar("_Result")


@cache
def _defaults(name: str) -> dict[str, Any]:
    return defaults_of(getattr(torch.ops.adderzoo, name))


def fill_defaults(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """All arguments of an operator: the dispatcher drops trailing ones that equal their defaults."""
    return *arguments, *list(_defaults(name).values())[len(arguments) :]


def takes_arguments_of(name: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Gives a function with the parameters of an operator its defaults, too, which stand in the schema alone."""

    def decorate(function: Callable[..., _Result]) -> Callable[..., _Result]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> _Result:
            if named:
                known = _defaults(name)
                return function(**(known | dict(zip(known, arguments, strict=False)) | named))
            return function(*fill_defaults(name, arguments))

        return call

    return decorate
