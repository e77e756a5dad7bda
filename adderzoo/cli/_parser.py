"""The parser of every command: one usage line, options that commands share, examples, and what may have been meant."""

import argparse
import textwrap
from copy import copy
from dataclasses import replace
from typing import Any, Literal, NoReturn

from adderzoo.engine.config import train_options
from adderzoo.engine.options import Option, literal
from adderzoo.files.names import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's, for one command or for all of them."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **arguments})
        self._shared: list[Option] = []
        self._inside = False
        self.notes = ""
        self.examples: tuple[str, ...] = ()

    def explain(self, usage: str, *examples: str, description: str = "", notes: str = "") -> None:
        """What the help says beside the options.

        Args:
            usage: What follows the command's name in one short line, such as "DIR -m NAME [options]".
            examples: Commands that run as they stand, from a clone after the demo, beginning with "adderzoo".
            description: Sentences behind the one that says what the command does.
            notes: Paragraphs behind the options.
        """
        self.usage, self.notes, self.examples = f"%(prog)s {usage}", notes, examples
        self.description = f"{self.description} {description}".strip()
        lines = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {each}" for each in examples)])
        self.epilog = f"{notes}\n\n{lines}".strip()

    def share(self, *names: str, group: Any = None, **changes: Any) -> None:
        """Options that `adderzoo train` has too, under the same names, with the same checks.

        Args:
            names: Of fields of :class:`TrainConfig`.
            group: Of this parser, that the help shows them in; None for none.
            changes: Of the option: `default`, or fields of :class:`adderzoo.engine.options.About`, such as `help` and
                `check`.
        """
        for option in train_options():
            if option.name in names:
                default = {key: changes[key] for key in ("default",) if key in changes}
                about = {key: value for key, value in changes.items() if key != "default"}
                option = replace(option, about=replace(option.about, **about), **default)
                add_option(group or self, option)
                self._shared.append(option)

    def add_data_dir(self, help: str | None = None) -> None:
        """The folder of a data set, as DIR or as `--data-dir`; both come as `args.data_dir`."""
        self.add_argument("data", metavar="DIR", nargs="?", help=help or _option("data_dir").about.help)
        self.share("data_dir", help="the same as DIR, as timm's scripts have it")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, but options may stand between positionals, and what is unknown is refused here."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        words = list(args or [])
        self._check_words(words)
        if self._subparsers:  # whose words are none of this parser's
            return super().parse_known_args(words, namespace)
        before = copy(namespace)
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self._inside = True
            try:
                namespace, unknown = self.parse_known_intermixed_args(words, before)
            finally:
                self._inside = False
        if unknown:
            self.error(f"there is no place for {' '.join(unknown)}")
        folder = vars(namespace).pop("data", None)
        if folder is not None:
            if namespace.data_dir is not None:
                self.error(f"the folder must be given once, as DIR or as --data-dir: got {folder!r} and --data-dir")
            namespace.data_dir = folder
        for option in self._shared:
            value = getattr(namespace, option.name)
            setattr(namespace, option.name, option.take(dict(value) if option.kind is dict else value))
        return namespace, unknown

    def _check_words(self, words: list[str]) -> None:
        """Refuse options that there are none of, ahead of everything else that may be wrong."""
        known = [name for action in self._actions for name in action.option_strings]
        long = [name for name in known if name.startswith("--")]
        for word in words:
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return
            name = word.partition("=")[0]
            if word.startswith("--") and " " not in name and not any(each.startswith(name) for each in long):
                self.error(f"there is no option {name}{did_you_mean(name, long)}{self._help()}")
            if f"-{name}" in long and name not in known:  # which would be read as -m odel
                self.error(f"there is no option {name}, did you mean -{name}?")

    def _help(self) -> str:
        return f" ({self.prog} --help names them)"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(each) for each in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"there is no command {value!r}{did_you_mean(value, names)}{self._help()}")
        text = f"must be one of {', '.join(names)}, got {value!r}{did_you_mean(str(value), names)}"
        raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        """argparse's, in the words of this package's own errors."""
        message = message.removeprefix("argument ").replace(": must be ", " must be ")
        for kind, words in (("int", "an integer"), ("float", "a number")):
            message = message.replace(f": invalid {kind} value: ", f" must be {words}, got ")
        if message.startswith("the following arguments are required"):
            message += self._help().replace("names", "explains")
        super().error(message)


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs, and leaves lines that are set in, such as examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if "\n  " in part else textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n")
        )


def add_option(parser: Any, option: Option) -> None:
    """An option, as an argument of a parser or of a group in it."""
    names = [f"-{option.about.letters}"] * bool(option.about.letters) + [f"--{option.dashed}"]
    parser.add_argument(*names, help=option.about.help, **_parsing(option))


def _option(name: str) -> Option:
    return next(option for option in train_options() if option.name == name)


def _parsing(option: Option) -> dict[str, Any]:
    """How argparse reads an option."""
    about = option.about
    if option.kind is bool:
        return {"action": argparse.BooleanOptionalAction if option.optional else "store_true"}
    parsing: dict[str, Any] = {"default": option.default}
    if about.required:
        parsing = {"required": True}
    if about.metavar:
        parsing["metavar"] = about.metavar
    if option.kind is Literal:
        parsing["choices"] = option.items
    elif option.kind is dict:
        parsing |= {"nargs": "*", "default": [], "type": key_and_value}
    elif option.kind is list:
        parsing |= {"nargs": about.count or "+", "type": option.items[0]}
    else:
        parsing["type"] = option.kind
    if about.const:
        parsing |= {"nargs": "?", "const": about.const}
    return parsing


def key_and_value(text: str) -> tuple[str, Any]:
    """An argument of the form KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    return key, literal(value)
