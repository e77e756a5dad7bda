"""CITATION.cff, which GitHub and Zenodo read; cffconvert has found it valid."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_it_has_what_the_format_asks_for_and_says_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()
    assert CITATION["cff-version"] == "1.2.0"
    assert (CITATION["version"], CITATION["license"]) == (project["version"], project["license"])


def test_the_preferred_citation_is_that_of_the_readme() -> None:
    (bibtex,) = re.findall(r"^```bibtex\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    said = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", bibtex, re.MULTILINE))
    paper = CITATION["preferred-citation"]
    assert paper["title"] == re.sub(r"[{}]", "", said["title"])
    assert " and ".join(f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]) == said["author"]
    assert f"{paper['start']}--{paper['end']}" == said["pages"]
    assert str(paper["year"]) == said["year"]
    assert paper["collection-title"] == said["booktitle"]
