"""Names of a package that are imported where they are first used, so that the command answers before PyTorch is."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, modules: Iterable[str] = (), names: Mapping[str, Iterable[str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: Its `__name__`.
        modules: Modules of it.
        names: By the module that has them, functions and classes: "fuse", or "export_network as export".
    """
    places = dict.fromkeys(modules, "")
    for module, imported in (names or {}).items():
        for text in imported:
            original, _, name = text.partition(" as ")
            places[name or original] = f"{module}.{original}"

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, original = places[name].rpartition(".")
        value = import_module(f"{package}.{module or name}")
        if original:
            value = getattr(value, original)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(places)
