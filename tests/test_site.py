"""Pages of the documentation that are written when the site is built, which `bash scripts/docs.sh` does, strictly."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import timm
import yaml

from adderzoo import layers
from adderzoo.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_row(hooks: ModuleType, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    heads = re.findall(r"^  (-.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", " ".join(heads))) - {"--help"}
    (section,) = re.findall(rf"^## adderzoo {command}\n(.*?)(?=^## |\Z)", hooks.commands(), re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", section, re.MULTILINE)
    assert options
    assert options <= set(re.findall(r"`(--[\w-]+)", " ".join(names for names, _ in rows)))
    assert "%(default)s" not in section
    # A pipe in a cell would end it.
    assert all(re.fullmatch(r"(\\\||[^|])*", text) for _, text in rows)


def test_every_page_is_in_the_navigation_and_nothing_else(hooks: ModuleType) -> None:
    nav = hooks.navigation(yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())["nav"])
    shown = re.findall(r": '([\w/.-]+\.md)'", str(nav))
    pages = {str(path.relative_to(ROOT / "docs" / "pages")) for path in (ROOT / "docs" / "pages").rglob("*.md")}
    cards = {path for path in hooks.pages() if path.startswith("reference/zoo/")}
    assert sorted(shown) == sorted((pages | hooks.pages().keys()) - cards)


def test_every_network_is_in_the_zoo(hooks: ModuleType) -> None:
    page = hooks.zoo()
    shown = re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)
    kinds = ("adder_*", "bnn_*", "cnn_*", "shift_*", "shiftadd_*")
    ours = timm.list_models(kinds, module="")
    assert set(shown) >= {name for name in ours if timm.model_entrypoint(name).__module__.startswith("adderzoo.")}
    assert len(shown) == len(set(shown))
    cards = re.findall(r"\(zoo/(.+?)\)", page)
    assert "| elements `|x - w|` of adder layers |" in hooks.pages()["reference/zoo/adder_resnet20.cifar10.md"]
    assert {f"reference/zoo/{card}" for card in cards} == {path for path in hooks.pages() if "/zoo/" in path}


def test_the_front_page_links_to_pages_of_the_site(hooks: ModuleType) -> None:
    pages = {str(path.relative_to(ROOT / "docs" / "pages")) for path in (ROOT / "docs" / "pages").rglob("*.md")}
    pages |= hooks.pages().keys()
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", hooks.pages()["index.md"])
    assert {link for link in links if link.endswith(".md")} <= pages
    assert {link for link in links if not link.endswith(".md")} == {"figures/operations.png"}
    assert "<figcaption" in hooks.pages()["index.md"]


def test_the_api_has_every_layer(hooks: ModuleType) -> None:
    page = hooks.api_pages()["reference/python/adderzoo.layers.md"]
    assert set(layers.__all__) <= set(re.findall(r"\w+", page))


def test_a_function_with_the_name_of_its_module_is_found(hooks: ModuleType) -> None:
    page = hooks.api_pages()["reference/python/adderzoo.ops.md"]
    assert "::: adderzoo.ops.adder2d.adder2d\n" in page
