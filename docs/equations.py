"""Equations in docstrings, LaTeX behind Sphinx's `.. math::`, become MathML, which browsers show by themselves."""

import re
from typing import Any

from griffe import Docstring, Extension, Object
from latex2mathml.converter import convert


class Equations(Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = re.sub(
                r"^\.\. math::\n((?: +.+\n?)+)", _mathml, obj.docstring.value, flags=re.MULTILINE
            )


def _mathml(match: re.Match[str]) -> str:
    """One element a line of the equation, since its alignment has no counterpart."""
    lines = " ".join(match[1].split()).replace("&", "").split(r"\\ ")
    return "\n" + "\n\n".join(convert(line, display="block") for line in lines) + "\n"
