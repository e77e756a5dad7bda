"""Weights on the Hugging Face Hub and elsewhere: a copy that is known to be right before anybody reads it."""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from timm.models._hub import download_cached_file, hf_split

# Whose repositories on the Hub have this package's weights, once `scripts/publish.py` has put all of them there: None
# until then, since whoever had a name that is not ours would be asked for them.
HUB_ORGANIZATION: str | None = None


def hub_id(tag: str) -> str | None:
    """The repository on the Hub of the weights of a tag, such as adder_lenet5.digits; None before they are there."""
    return f"{HUB_ORGANIZATION}/{tag}" if HUB_ORGANIZATION else None


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_hub(
    repo: str, published: str | None = None, filename: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """A file of weights: from huggingface_hub's cache, else from the Hub.

    A file in the cache that is not the right one is fetched again, and one that comes from the Hub as something else is
    refused. Where neither the caller nor the server (in its ETag) tells the SHA-256 of weights, a warning says that
    nothing is checked. huggingface_hub itself compares sizes, of what it fetches. HF_HUB_OFFLINE, HF_ENDPOINT and the
    like are as huggingface_hub takes them.

    Args:
        repo: ORG/NAME, or ORG/NAME@REVISION.
        published: The file's SHA-256. A cached file that has it is taken without asking the Hub. None for what the Hub
            says of it.
        filename: In the repository; None for model.safetensors.
        cache_dir: In place of huggingface_hub's own.

    Raises:
        OSError: if the right file is not in the cache and cannot be fetched, or the Hub has another one.
    """
    repo_id, revision = hf_split(repo)
    which: Any = {
        "repo_id": repo_id, "filename": filename or "model.safetensors", "revision": revision, "cache_dir": cache_dir
    }  # fmt: skip
    cached = try_to_load_from_cache(**which)
    if published is not None and isinstance(cached, str) and sha256(Path(cached)) == published:
        return Path(cached)
    path = _fetch(which)
    if published is None and not _hub_sha256(path) and path.suffix != ".json":
        warnings.warn(
            f"{which['filename']} of {repo} is not checked: the server calls it {path.resolve().name!r}, which is no "
            "SHA-256",
            stacklevel=2,
        )
    if _differs(path, published):  # the cache asks for names only: a damaged file counts as there
        path = _fetch(which, f"{path} is damaged, and ")
    if reason := _differs(path, published):
        raise OSError(f"{which['filename']} of {repo} on the Hugging Face Hub is not used: {reason}")
    return path


def from_url(url: str, published: str, cache_dir: str | Path | None = None) -> Path:
    """A file of weights: from torch.hub's cache, else from its URL; one in the cache that is damaged is fetched again.

    Args:
        url: Its last part names the file in the cache.
        published: The file's SHA-256.
        cache_dir: In place of torch.hub's own.

    Raises:
        OSError: if it has to be fetched and cannot, or another file is there.
    """
    try:
        path = Path(download_cached_file(url, check_hash=False, cache_dir=cache_dir))
        if _differs(path, published):
            path.unlink()
            path = Path(download_cached_file(url, check_hash=False, cache_dir=cache_dir))
    except OSError as error:
        raise OSError(f"{url} cannot be fetched: {error}") from error
    if reason := _differs(path, published):
        raise OSError(f"{path} is damaged, or {url} has another file: {reason}")
    return path


def _fetch(which: dict[str, Any], context: str = "") -> Path:
    try:
        return Path(hf_hub_download(**which, force_download=bool(context)))
    except Exception as error:  # those of the HTTP library are others in other versions of huggingface_hub
        reasons = [" ".join(str(each).split()) for each in (error, error.__cause__) if each]
        raise OSError(
            f"{context}{which['filename']} of {which['repo_id']} cannot be had from the Hugging Face Hub: "
            f"{'; '.join(reasons)}"
        ) from error


def _hub_sha256(path: Path) -> str | None:
    """The SHA-256 by which the Hub, and so the cache, names what is in LFS or Xet, as weights are; None for others."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _differs(path: Path, published: str | None) -> str:
    """How a file in the cache is not what it should be; "" if it is."""
    expected = published or _hub_sha256(path)
    got = sha256(path)
    return "" if expected in (None, got) else f"its SHA-256 is {got}, published is {expected}"
