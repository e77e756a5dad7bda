"""Options as fields of a dataclass, which say of themselves what they take, and how a command has them."""

import ast
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from adderzoo.files.foreign import shown
from adderzoo.files.names import did_you_mean

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """What a value must be: a condition, and its words for the error. None always is."""

    words: str
    holds: Callable[[Any], bool]


def at_least(minimum: int) -> Check:
    return Check(f"at least {minimum}", lambda value: value >= minimum)


FINITE = Check("a finite number", math.isfinite)
SHARE = Check("from 0 to 1", lambda value: 0 <= value <= 1)
NOT_NEGATIVE = Check("a finite number from 0", lambda value: 0 <= value < math.inf)
ABOVE_ZERO = Check("a finite number above 0", lambda value: 0 < value < math.inf)


def given(*names: str) -> Callable[[Options], bool]:
    """A condition: that one of these options is."""
    return lambda options: any(options[name] for name in names)


@dataclass(frozen=True, kw_only=True)
class About:
    """What a field says of its option beside type and default.

    Attributes:
        help: One line, as the command's help shows it.
        group: The heading that it stands under there.
        metavar: Its value in the help.
        letters: Its short form on the command line, such as "b".
        required: It has to be given to the command.
        const: Its value where the command line has the option alone.
        count: Values of a list, if it takes so many and no others.
        path: It is the path of a file or folder here.
        check: Refuses values that nothing checks later.
        reserved: Keys of a dict that there are options for.
        by_task: Its default for classifiers, and for super-resolution, where its own is None.
        fine_tuning: Its default for classifiers that start from trained weights, if that is another.
        task: The only one that it is for: "classifiers" or "super-resolution".
        other_than: The option that it cannot be given with.
        matters: Whether it has an effect, by the values of all; None for always.
        on_resume: What another value does where a training goes on, "" for nothing; None if it must be the same.
        for_fit: It means something to :func:`adderzoo.engine.fit` too.
    """

    help: str
    group: str = ""
    metavar: str | None = None
    letters: str = ""
    required: bool = False
    const: str | None = None
    count: int | None = None
    path: bool = False
    check: Check | None = None
    reserved: tuple[str, ...] = ()
    by_task: tuple[Any, Any] | None = None
    fine_tuning: Any = None
    task: Literal["classifiers", "super-resolution"] | None = None
    other_than: str | None = None
    matters: Callable[[Options], bool] | None = None
    on_resume: str | None = None
    for_fit: bool = False

    def usual(self, super_resolution: bool, starts_trained: bool) -> Any:
        """Its default for a task, and for weights to start from or none."""
        if starts_trained and not super_resolution and self.fine_tuning is not None:
            return self.fine_tuning
        return self.by_task[super_resolution] if self.by_task else None


def option(default: Any, help: str, by_task: tuple[Any, Any] | None = None, **about: Any) -> Any:
    """A field of a dataclass of options; `help` may have {} for what is default: :class:`About`'s, in this order.

    That is the default for classifiers, for fine-tuning them if that is another, and for super-resolution.
    """
    usual = [by_task[0], *filter(None, [about.get("fine_tuning")]), by_task[1]] if by_task else []
    metadata = {"about": About(help=help.format(*usual) if by_task else help, by_task=by_task, **about)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(config: type) -> tuple["Option", ...]:
    """The options that the fields of a dataclass are, in their order."""
    hints = get_type_hints(config)
    made = []
    for each in fields(config):
        default = each.default_factory() if callable(each.default_factory) else each.default
        optional = NoneType in get_args(hints[each.name])
        made.append(Option(each.name, default, *_kind(hints[each.name]), optional, each.metadata["about"]))
    return tuple(made)


@dataclass(frozen=True)
class Option:
    """An option: a field with its name and type.

    Attributes:
        name: With underscores, as Python has it.
        default: Where it is not given.
        kind: Its type where it is not None: bool, int, float, str (paths too), list, dict or Literal.
        items: The choices of a Literal, or the kind of a list's items.
        optional: None is a value.
        about: What the field says of it.
    """

    name: str
    default: Any
    kind: Any
    items: tuple[Any, ...]
    optional: bool
    about: About

    @property
    def dashed(self) -> str:
        """Its name as the command and errors have it."""
        return dashed(self.name)

    def take(self, value: Any) -> Any:
        """The value, in the option's type.

        Raises:
            ValueError: if it is none that the option takes, naming it.
        """
        if value is None and self.optional:
            return None
        try:
            value = self._converted(value)
        except TypeError:
            none = " or None" if self.optional else ""
            hint = did_you_mean(value, self.items) if self.kind is Literal and isinstance(value, str) else ""
            raise ValueError(f"{self.dashed} must be {self._words()}{none}, got {value!r}{hint}") from None
        if self.about.check and not self.about.check.holds(value):
            raise ValueError(f"{self.dashed} must be {self.about.check.words}, got {value}")
        if self.kind is list and not value:
            raise ValueError(f"{self.dashed} must be one or several, got []")
        return self._items(value) if self.kind is dict else value

    def _converted(self, value: Any) -> Any:
        if self.kind is Literal and value not in self.items:
            raise TypeError
        if self.kind is list:
            if isinstance(value, str | bytes) or not isinstance(value, Sequence):
                raise TypeError
            return [self._scalar(each, self.items[0]) for each in value]
        return self._scalar(value, self.kind)

    def _scalar(self, value: Any, kind: Any) -> Any:
        """Raises a TypeError where the value is none of the kind; numbers and paths may be those of other libraries."""
        if kind is str and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, _TAKEN[kind]) or (isinstance(value, bool) and kind is not bool):
            raise TypeError
        if self.about.path and value:
            return str(Path(str(value)))
        return value if kind is Literal else kind(value)

    def _words(self) -> str:
        if self.kind is Literal:
            return f"one of {', '.join(self.items)}"
        return f"a list, each {_WORDS[self.items[0]]}" if self.kind is list else _WORDS[self.kind]

    def _items(self, items: dict[str, Any]) -> dict[str, Any]:
        """Those of a dict, as args.yaml, the weights' metadata and the command line can have them."""
        taken = {}
        for key, value in items.items():
            if not isinstance(key, str):
                raise ValueError(f"{self.dashed} must have names for keys, got {key!r}")
            if key in self.about.reserved:
                raise ValueError(f"{self.dashed} must not have {key}: there is --{dashed(key)}")
            try:
                taken[key] = _plain(value)
            except (RecursionError, TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{self.dashed} {key} must be a finite number, a text, True, False, None or a list of these, got "
                    f"{shown(value)}"
                ) from error
        return taken

    def words(self, value: Any) -> list[str]:
        """What gives it this value on the command line."""
        if self.kind is bool:
            return [f"--{self.dashed}" if value else f"--no-{self.dashed}"]
        values = value if self.kind is list else [value]
        if self.kind is dict:
            values = [f"{key}={each if is_plain(each) else repr(each)}" for key, each in value.items()]
        texts = list(map(str, values))
        if len(texts) == 1 and texts[0].startswith("-"):  # which would be an option
            return [f"--{self.dashed}={texts[0]}"]
        return [f"--{self.dashed}", *texts]


_TAKEN = {
    bool: bool,
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    dict: Mapping,
    Literal: str,
}
_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a text", dict: "a dict"}


def _plain(value: Any) -> Any:
    """A value in Python's own types; a TypeError or ValueError where there is none, as for a complex number or NaN."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        value = float(value)
        if not math.isfinite(value):
            raise ValueError
        return value
    if isinstance(value, list | tuple):
        parts = map(_plain, value)
        return tuple(parts) if isinstance(value, tuple) else list(parts)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_plain(key): _plain(each) for key, each in value.items()}
    raise TypeError


def _kind(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without None, and what is in it."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _kind(next(each for each in inside if each is not NoneType))  # of `str | Path`, a text
    if origin is Literal:
        return Literal, inside
    if origin is Sequence:
        return list, (_kind(inside[0])[0],)
    return origin or hint, ()


def literal(text: str) -> Any:
    """The value that a text writes as Python does, else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def is_plain(value: Any) -> bool:
    """Whether a value is a text that :func:`literal` leaves as it is."""
    return isinstance(value, str) and literal(value) == value


def without_tuples(value: Any) -> Any:
    """A value without tuples, which YAML has none of."""
    if isinstance(value, Mapping):
        return {key: without_tuples(each) for key, each in value.items()}
    return [without_tuples(each) for each in value] if isinstance(value, list | tuple) else value


def dashed(name: str) -> str:
    return name.replace("_", "-")
