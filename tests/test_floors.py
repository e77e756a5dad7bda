"""Who may import whom: the package is a house of rooms on floors, and imports run downwards only."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import adderzoo

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adderzoo"

# From the ground up. A room imports itself and the floors below it, wherever in a file the import stands.
FLOORS = [
    ["_lazy"],
    ["ops"],
    ["layers"],
    ["files", "hub", "optim"],
    ["analysis", "data", "inference"],
    ["catalogue", "models"],
    ["checkpoints", "inference.export", "microcontroller"],
    ["detection", "engine"],
    ["pipelines", "publish"],
    ["cli"],
]
HEIGHTS = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a module, by its name without "adderzoo."; "" for the package itself."""
    fitting = [room for room in HEIGHTS if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len, default="")


def modules() -> dict[str, Path]:
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in paths.items()}


def imports(name: str, path: Path) -> Iterator[str]:
    """What a module imports of this package."""
    package = ["adderzoo", *name.split(".")] if path.name == "__init__.py" else ["adderzoo", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (each.removeprefix("adderzoo.") for each in found if each.startswith("adderzoo."))


def test_every_module_has_a_room_and_every_room_is_there() -> None:
    assert [name for name in modules() if name and not room_of(name)] == []
    assert set(HEIGHTS) <= modules().keys()


def test_imports_run_downwards() -> None:
    upwards, seen = [], 0
    for name, path in modules().items():
        if not name:  # the package itself, which names what a user may call
            continue
        for other in imports(name, path):
            here, there = room_of(name), room_of(other)
            seen += 1
            if there and there != here and HEIGHTS[there] >= HEIGHTS[here]:
                upwards.append(f"{name} imports {other}")
    assert upwards == []
    assert seen > 300


def test_a_room_says_what_it_holds() -> None:
    """In a sentence, which the table of the documentation has too."""
    page = (ROOT / "docs" / "pages" / "internals" / "house.md").read_text()
    rows = re.findall(r"^\| (`adderzoo\..+?) \| (.+) \|$", page, re.MULTILINE)
    expected = []
    for rooms in reversed(FLOORS):
        for room in rooms:
            folder = PACKAGE / room.replace(".", "/")
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            documentation = ast.get_docstring(ast.parse(file.read_text()))
            assert documentation, room
            expected.append((f"`adderzoo.{room}`", documentation.split("\n\n")[0].replace("\n", " ")))
    assert rows == expected


def test_the_package_shows_what_a_user_may_call() -> None:
    assert dir(adderzoo) == sorted(adderzoo.__all__)
    for name in dir(adderzoo):
        value = getattr(adderzoo, name)
        assert value.__doc__, name


def test_what_a_room_shows_is_there_without_another_import() -> None:
    """In a new process: here, other tests have imported everything already."""
    script = (
        "import adderzoo\n"
        "for room in (adderzoo.analysis, adderzoo.engine, adderzoo.inference):\n"
        "    assert dir(room) == sorted(room.__all__)\n"
        "    assert all(getattr(room, name).__doc__ for name in room.__all__)\n"
        "    assert not hasattr(room, 'nonsense')\n"
        "adderzoo.analysis.costs.profile, adderzoo.inference.quantization.simulate\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
