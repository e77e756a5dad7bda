"""Pages that mkdocs does not find in docs/pages: the front page is README.md, the reference comes from the package."""

import argparse
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import adderzoo
from adderzoo import catalogue
from adderzoo.cli import COMMANDS, parsers

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "scripts" / "reproduce" / "figures"
WEIGHTS = ROOT / "adderzoo" / "weights"


# --------------------------------------------------------------------------------------------------- what mkdocs calls


def on_config(config: Any) -> Any:
    """Put the modules into the navigation, and have the equations in docstrings shown as such."""
    config["nav"] = navigation(config["nav"])
    equations = Path(__file__).with_name("equations.py")
    config["plugins"]["mkdocstrings"].config["handlers"]["python"]["options"]["extensions"] = [str(equations)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the written pages and the figures."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for figure in sorted(FIGURES.glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Make links of what docstrings refer to, :func:`adderzoo.fuse`, which is Sphinx's way to write it."""
    return re.sub(
        r":\w+:<code>~?([\w.]+)</code>",
        r'<autoref optional identifier="\1"><code>\1</code></autoref>',
        html,
    )


# ----------------------------------------------------------------------------------------------------------- the pages


def navigation(nav: list[Any]) -> list[Any]:
    """The navigation with the modules in it."""
    (reference,) = (entry["Reference"] for entry in nav if "Reference" in entry)
    (python,) = (entry for entry in reference if "Python" in entry)
    python["Python"] = [{name: path} for name, path in zip(modules(), api_pages(), strict=True)]
    return nav


def pages() -> dict[str, str]:
    """All pages that are not in docs/pages, by their paths there."""
    return {
        "index.md": front_page((ROOT / "README.md").read_text()),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "reference/zoo.md": zoo(),
        "reference/commands.md": commands(),
        **{f"reference/zoo/{card.name}": card_page(card.read_text()) for card in sorted(WEIGHTS.glob("*.md"))},
        **api_pages(),
    }


def front_page(readme: str) -> str:
    """README.md with the links of a page of the site."""
    links = {"docs/pages/": "", "scripts/reproduce/figures/": "figures/", "CHANGELOG.md": "changelog.md"}
    for path, page in links.items():
        readme = readme.replace(f"]({path}", f"]({page}")
    # A picture and its caption.
    readme = re.sub(r"^(!\[[^\n]+\))\n\n\*(.+?)\*$", _figure, readme, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\[(LICENSE|CITATION\.cff)\]\(\1\)", r"`\1`", readme)


def _figure(match: re.Match[str]) -> str:
    image, caption = match.groups()
    return f'<figure markdown="span">\n{image}\n<figcaption markdown="span">{caption}</figcaption>\n</figure>'


def zoo() -> str:
    """All networks, what they cost, and their weights, which link to their cards."""
    lines = [
        "# Zoo",
        "",
        "All networks, with what they cost for one image of the input size: multiply-adds of convolutions and linear "
        "layers, and elements `|x - w|` of adder layers. What binary and shift layers compute is in neither. Images a "
        "second are those in float32 of the [tables](../results/tables.md), which name machine, batch and size. Of "
        "weights there are top-1 accuracy in percent with its standard error, or PSNR in dB, and on how many images; "
        "each has a card with recipe, command and license.",
    ]
    titles = {"image-classification": "Classifiers", "super-resolution": "Super-resolution"}
    for task, title in titles.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| network | parameters | multiply-adds | elements | input | images/s | weights |",
            "| --- | ---: | ---: | ---: | --- | ---: | --- |",
        ]
        for network in catalogue.networks():
            if network.task == task:
                cells = [
                    f"`{network.name}`",
                    *(f"{n:,}" for n in _costs(network)),
                    "x".join(map(str, network.input_size)),
                    f"{network.images_per_second:g}" if network.images_per_second else "",
                ]
                lines.append(f"| {' | '.join(cells)} | {'<br>'.join(_weights(network))} |")
    return "\n".join(lines) + "\n"


def _costs(network: catalogue.ModelInfo) -> tuple[int, int, int]:
    return network.parameters, network.multiply_adds, network.adder_elements


def _weights(network: catalogue.ModelInfo) -> Iterator[str]:
    for weights in network.pretrained:
        card = f"{network.name}.{weights.tag}.md"
        name = f"[`{weights.tag}`](zoo/{card})" if (WEIGHTS / card).exists() else f"`{weights.tag}`"
        measured = weights.measured
        if isinstance(measured, catalogue.Accuracy):
            yield f"{name}: {measured.top1:.2f} ± {measured.top1_se:.2f} % ({measured.images:,})"
        elif isinstance(measured, catalogue.Quality):
            first = measured.test_sets[0]
            yield f"{name}: {first.psnr:.2f} dB ({first.name}, {first.images})"
        else:
            yield name


def card_page(card: str) -> str:
    """A model card; in code in a table GitHub and the Hub want a pipe escaped, Python-Markdown does not."""
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace(r"\|", "|"), card)


def commands() -> str:
    """Every command with its options, from the parsers."""
    lines = ["# Commands", "", "`adderzoo COMMAND --help` prints the same.", ""]
    lines += ["| command | what it does |", "| --- | --- |"]
    lines += [f"| [`adderzoo {name}`](#adderzoo-{name}) | {text} |" for name, text in COMMANDS.items()]
    for name, text in COMMANDS.items():
        parser = parsers([name])[1][name]
        lines += ["", f"## adderzoo {name}", "", _escaped(parser.description or text)]
        lines += ["", "```sh", *parser.examples, "```"] if parser.examples else []
        positionals, options, *others = parser._action_groups
        own = [action for action in options._group_actions if action.dest != "help"]
        lines += _table(parser, "", positionals._group_actions + own)
        for group in others:
            lines += _table(parser, f"### {group.title}", group._group_actions)
        if notes := parser.notes or (parser.epilog if not parser.examples else ""):
            lines += ["", _escaped(notes)]
    return "\n".join(lines) + "\n"


def _table(parser: argparse.ArgumentParser, title: str, actions: list[argparse.Action]) -> list[str]:
    rows = [_row(parser, action) for action in actions if action.help != argparse.SUPPRESS]
    return ["", title, "", "| argument | meaning |", "| --- | --- |", *rows] if rows else []


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    value = (
        formatter._format_args(action, formatter._get_default_metavar_for_optional(action)) if action.nargs != 0 else ""
    )
    names = [f"`{' '.join(filter(None, (option, value)))}`" for option in action.option_strings] or [f"`{value}`"]
    return f"| {', '.join(names)} | {_escaped(formatter._expand_help(action)) if action.help else ''} |"


def _escaped(text: str) -> str:
    return re.sub(r"([|<*_\[])", r"\\\1", text)


def modules() -> list[str]:
    """The public modules; networks are made by name."""
    names = [name for name in adderzoo.__all__ if isinstance(getattr(adderzoo, name), ModuleType) and name != "models"]
    return ["adderzoo", *(f"adderzoo.{name}" for name in sorted([*names, "microcontroller"]))]


def api_pages() -> dict[str, str]:
    """A page a public module, whose text mkdocstrings takes from the docstrings."""
    return {f"reference/python/{name}.md": _api_page(name) for name in modules()}


def _api_page(name: str) -> str:
    lines = [f"# {name}", ""]
    for part in _public_parts(importlib.import_module(name)):
        level = 2
        if part.__name__ != name:
            lines += [f"## {part.__name__}", ""]
            level = 3
        lines += [inspect.getdoc(part) or "", ""]
        for member in _members(part):
            path = f"{part.__name__}.{member}"
            # A function with the name of its module is found there alone.
            lines += [f"::: {path}.{member}" if path in sys.modules else f"::: {path}"]
            lines += ["    options:", f"      heading_level: {level}", ""]
    return "\n".join(lines)


def _public_parts(module: ModuleType) -> list[ModuleType]:
    """The module, or of a package that has nothing of its own the modules in it."""
    if hasattr(module, "__all__") or not hasattr(module, "__path__"):
        return [module]
    names = [info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("_")]
    return [importlib.import_module(f"{module.__name__}.{name}") for name in names]


def _members(module: ModuleType) -> list[str]:
    """Functions and classes that a module offers."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [
        name
        for name in names
        if not isinstance(value := getattr(module, name), ModuleType)
        if hasattr(module, "__all__") or getattr(value, "__module__", None) == module.__name__
    ]
