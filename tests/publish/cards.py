"""Parts of model cards."""

import re


def section(card: str, title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    return text


def code(card: str, language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    return text


def table(text: str) -> dict[str, list[str]]:
    """Cells by the first of their row; the first row is the head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(cells) for cells in rows}) == 1
    return {first: rest for first, *rest in rows}
