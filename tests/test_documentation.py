"""README.md and the pages in docs/pages: their code blocks run as they stand, their links and pictures are there."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from example_data import write_digits, write_photos

import adderzoo

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "pages"
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *sorted(PAGES.rglob("*.md")))
}
# These set up the environment that the test is run by.
COMMANDS = ("bash scripts/demo.sh", "bash scripts/test.sh")


class Block(NamedTuple):
    document: str
    language: str
    code: str


BLOCKS = [
    Block(document, language, code)
    for document, text in DOCUMENTS.items()
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
]
LOOP = [block for block in BLOCKS if "for epoch in range(epochs)" in block.code]
OTHERS = [block for block in BLOCKS[1:] if block not in LOOP]


def name(block: Block) -> str:
    return f"{Path(block.document).stem}: {block.code.splitlines()[0]}"


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that the demo leaves."""
    folder = tmp_path_factory.mktemp("demo")
    write_digits(folder / "digits")
    write_photos(folder / "photos")
    return folder


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The clones by document."""
    return {document: tmp_path_factory.mktemp("clone") for document in DOCUMENTS}


@pytest.fixture
def clone(request: pytest.FixtureRequest, clones: dict[str, Path], after_the_demo: Path) -> Path:
    """The checkout as a reader of this document has it after the demo, with what its earlier blocks have written.

    Without code of the package where one is installed.
    """
    folder = clones[request.node.callspec.params["block"].document]
    if not any(folder.iterdir()):
        package = Path(adderzoo.__file__).parent
        if package.parent == ROOT:
            names = ["adderzoo", "csrc", "hubconf.py", "scripts"]
        else:  # an installation from a wheel, say, which is to be tested in the place of the checkout's
            names = ["adderzoo/weights", "hubconf.py", "scripts"]
            (folder / "adderzoo").mkdir()
        for name in names:
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(after_the_demo, folder / "demo")
    return folder


def run(block: Block, clone: Path) -> str:
    # One thread: small networks gain nothing from more, and lose much beside another program on the same cores.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    interpreter = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run([*interpreter, block.code], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------------------------------- blocks


def test_the_first_block_is_the_two_commands() -> None:
    document, language, code = BLOCKS[0]
    lines = [line.partition("#")[0].strip() for line in code.splitlines()]
    assert (document, language, lines) == ("README.md", "bash", list(COMMANDS))
    assert all((ROOT / command.split()[1]).is_file() for command in COMMANDS)


@pytest.mark.parametrize("block", OTHERS, ids=name)
def test_block_runs(block: Block, clone: Path) -> None:
    run(block, clone)


def test_commands_that_are_shown_with_their_output_run_elsewhere() -> None:
    shown = re.findall(r"^\$ (.+)$", "\n".join(DOCUMENTS.values()), re.MULTILINE)
    assert shown
    assert set(shown) <= {line for block in BLOCKS for line in block.code.splitlines()}


@pytest.mark.parametrize("block", LOOP, ids=name)
def test_the_training_loop_learns(block: Block, clone: Path) -> None:
    # Chance is 10 %, scikit-learn's own example (a support vector machine on the same halves) 97 %.
    assert float(re.findall(r"([\d.]+) % of the held-out half", run(block, clone))[-1]) > 95


@pytest.mark.parametrize("block", [block for block in BLOCKS if "--experiment from_scratch" in block.code], ids=name)
def test_fine_tuning_beats_training_from_scratch(block: Block, clone: Path) -> None:
    accuracies = {}
    if not (clone / "demo" / "train" / "from_scratch").exists():  # the test of the blocks has not run
        for each in BLOCKS:
            if each.document == block.document:
                run(each, clone)
    for experiment in ("fine_tuned", "from_scratch"):
        with (clone / "demo" / "train" / experiment / "summary.csv").open(newline="") as file:
            accuracies[experiment] = float(list(csv.DictReader(file))[-1]["eval_top1"])
    assert accuracies["fine_tuned"] > 95
    # By more than three standard errors of the difference, which is at most 1.7 for 879 images.
    assert accuracies["fine_tuned"] > accuracies["from_scratch"] + 5.1


@pytest.mark.parametrize("block", [block for block in BLOCKS if "nearest neighbors" in block.code], ids=name)
def test_nearest_neighbors_are_of_the_same_class(block: Block, clone: Path) -> None:
    # Chance is 10 of 100, by the pixels it is 96.
    assert int(re.findall(r"(\d+) of 100 nearest neighbors", run(block, clone))[-1]) > 96


def test_the_trainings_are_there() -> None:
    """So that the tests above have something to run; the search of neighbors too."""
    assert len(LOOP) == 1
    assert sum("--experiment from_scratch" in block.code for block in BLOCKS) == 1
    assert sum("nearest neighbors" in block.code for block in BLOCKS) == 1


# --------------------------------------------------------------------------------------------------- links and pictures


def prose(document: str) -> str:
    return re.sub(r"^```.*?^```", "", DOCUMENTS[document], flags=re.DOTALL | re.MULTILINE)


def test_readme_is_one_screen() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= 200


def test_readme_shows_speeds_of_the_benchmarks() -> None:
    (shown,) = tables_with(DOCUMENTS["README.md"], "adder network in bytes")
    measured = tables_with(DOCUMENTS["docs/pages/results/benchmarks.md"], "adder network in bytes")
    assert len(shown) == 15
    assert any(shown.items() <= table.items() for table in measured)


def tables_with(text: str, row: str) -> list[dict[tuple[str, str], str]]:
    """The tables that have this row: their cells by row and column."""
    tables = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines())
        if any(label == row for label, *_ in rows):
            tables.append(
                {
                    (label, column): value
                    for label, *values in rows
                    for column, value in zip(head[1:], values, strict=True)
                }
            )
    return tables


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = target.partition("#")
        if "://" in target or path.startswith(("../reference/", "../figures/")):  # made when the site is built
            continue
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pictures_say_what_is_on_them_and_have_a_caption(document: str) -> None:
    pictures = re.findall(r"^!\[(.*)\]\((.+)\)\n+(.*)", prose(document), re.MULTILINE)
    assert len(pictures) == prose(document).count("![")
    for alt, target, caption in pictures:
        assert len(alt) > 20
        assert (ROOT / "scripts" / "reproduce" / "figures" / Path(target).name).is_file()
        assert caption.startswith(("<figcaption>", "*"))
