"""Names that somebody has typed, beside those that there are."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """What may have been meant by a name that is none of those known: ", did you mean ...?", or "" if none is like it.

    Args:
        name: As it was typed; capitals, and - for _, count for nothing.
        known: All that there are.
        most: So many are named, the likest first.
    """
    by_key: dict[str, str] = {}
    for each in known:
        by_key.setdefault(_key(each), each)
    close = [by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=most, cutoff=0.7)]
    return f", did you mean {' or '.join(close)}?" if close else ""


def _key(name: str) -> str:
    return name.casefold().replace("-", "_")
