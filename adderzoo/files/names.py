"""Names that somebody has typed, beside those that there are."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """What may have been meant by a name that is none of those known: ", did you mean ...?", or "" if none is like it.

    Args:
        name: As it was typed; capitals, and - for _, count for nothing.
        known: All that there are.
        most: So many are named, the likest first, if they are about as like it as this.
    """
    by_key: dict[str, str] = {}
    for each in known:
        by_key.setdefault(_key(each), each)
    if name in by_key.values():  # something else is wrong
        return ""
    keys = difflib.get_close_matches(_key(name), by_key, n=most, cutoff=0.7)
    shares = [difflib.SequenceMatcher(None, _key(name), key).ratio() for key in keys]
    close = [by_key[key] for key, share in zip(keys, shares, strict=True) if share > shares[0] - 0.05]
    return f", did you mean {' or '.join(close)}?" if close else ""


def _key(name: str) -> str:
    return name.casefold().replace("-", "_")


def no_network(name: str, known: Iterable[str], argument: str = "model") -> ValueError:
    """The error of a name that is no network's.

    Args:
        name: As it was typed.
        known: The names of all networks that there are.
        argument: That has the name.
    """
    hint = did_you_mean(name.partition(".")[0], known, 3)
    return ValueError(
        f"{argument} must be a registered network, got {name!r}{hint} (`adderzoo list` shows those of this package)"
    )


def no_tag(name: str, known: Iterable[str], argument: str = "model") -> ValueError:
    """The error of a tag that a network has none of.

    Args:
        name: Of the network, with the tag.
        known: The tags that the network has.
        argument: That has the name.
    """
    network, _, tag = name.partition(".")
    tags = [each for each in known if each]
    have = f"it has {', '.join(tags)}" if tags else "it has none"
    return ValueError(
        f"{argument} {network} has no tag {tag!r}{did_you_mean(tag, tags)} ({have}; `adderzoo list --pretrained` shows "
        "all)"
    )
