"""Text and files that others have written: checked in this one place, before anything acts on what they say."""

import json
import math
import pickle
import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Of a network's input: what no image is beyond, and a batch of them would have no room for.
_MOST_CHANNELS, _MOST_PIXELS = 1024, 4096
_MOST_CLASSES = 1_000_000
_MOST_PARTS, _MOST_DEPTH, _GREATEST = 1_000_000, 8, 2**20

# Of the bytes of a quantized network.
BITS = range(4, 9)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")

# Arguments of timm.create_model that a file has no business with: they would read other files.
_FILE_ARGUMENTS = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


def shown(value: Any) -> str:
    """A value in a message: without control characters, and short whatever it holds."""
    return reprlib.repr(value)


def plain(value: Any) -> str:
    """The same, without quotation marks around a text."""
    return value if _is_text(value) and len(value) < 200 else shown(value)


def some_of(names: Sequence[Any], most: int = 4) -> str:
    """The first of some names."""
    return ", ".join(map(plain, names[:most])) + (", ..." if len(names) > most else "")


def why(error: Exception) -> str:
    """One line of an error of PyTorch's reader: its own complaint, never its advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = next((line for line in lines if "unsupported" in line.lower()), lines[0])
    reason = line.partition(" Please use")[0]
    if "Weights only load failed" in reason:
        reason = "it is no checkpoint"
    speaks = isinstance(error, OSError | RuntimeError | ValueError | pickle.UnpicklingError)
    return reason if speaks else f"{type(error).__name__} {reason}"


def weights_in(path: Path | str) -> Path:
    """The file of weights in a folder, such as that of a training, as timm names it; of a file, this itself.

    Raises:
        ValueError: if only folders in the folder have one, naming them, as in the folder around several trainings.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    weights = path / "model.safetensors"
    inside = [] if weights.exists() else sorted(str(file.parent) for file in path.glob("*/model.safetensors"))
    if inside:
        raise ValueError(f"{path} has no model.safetensors, but these in it do, pass one: {some_of(inside)}")
    return weights


def parse_json(text: str) -> Any:
    """What a text in JSON says.

    Raises:
        ValueError: if it is none, has numbers that are not finite, or is nested without end.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error
    _check_size(value)
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null, since JSON has none.

    Args:
        value: Of dictionaries, lists, tuples, texts, numbers and None.
        indent: As `json.dumps` takes it.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(values: list[Any]) -> list[Any]:
    """What is in those of them that are containers."""
    containers = [value for value in values if isinstance(value, dict | list | tuple)]
    return [part for value in containers for part in (value.values() if isinstance(value, dict) else value)]


def _check_size(value: Any) -> None:
    """Refuse what is nested too deep, or has too many parts, for anything that is said of a network."""
    level, depth, items = [value], 0, 0
    while level:
        items += len(level)
        depth += 1
        if depth > _MOST_DEPTH:
            raise ValueError("it is nested without end")
        if items > _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS} parts")
        level = _parts(level)


def _is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number in [low, high]; True and False are none, nor is NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_text(value: Any) -> bool:
    """Whether it is a text that a terminal can be given: control characters could rewrite what it shows."""
    return isinstance(value, str) and not any(unicodedata.category(char) in ("Cc", "Cs") for char in value)


def _numbers(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_number(item, low, high) for item in value)


def _is_input_size(value: Any) -> bool:
    if not (isinstance(value, list | tuple) and len(value) == 3):
        return False
    channels, height, width = value
    return _is_integer(channels, 1, _MOST_CHANNELS) and all(_is_integer(n, 1, _MOST_PIXELS) for n in (height, width))


_DATA_CONFIG: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input_size": (
        _is_input_size,
        f"three integers (C, H, W) from 1, C at most {_MOST_CHANNELS}, H and W at most {_MOST_PIXELS}",
    ),
    "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    "mean": (lambda value: _numbers(value, -1e6, 1e6), "a list of numbers from -1e6 to 1e6"),
    "std": (lambda value: _numbers(value, 1e-6, 1e6), "a list of numbers from 1e-6 to 1e6"),
    "crop_pct": (lambda value: _is_number(value, 0.05, 2), "a number from 0.05 to 2"),
    "crop_mode": (lambda value: value in _CROP_MODES, f"one of {', '.join(_CROP_MODES)}"),
}


def check_data_config(value: Any) -> dict[str, Any]:
    """How images become input, under timm's names; others are left out.

    Raises:
        ValueError: naming what is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, got {shown(value)}")
    for key, (holds, what) in _DATA_CONFIG.items():
        if key in value and not holds(value[key]):
            raise ValueError(f"{key} must be {what}, got {shown(value[key])}")
    config = {key: value[key] for key in _DATA_CONFIG if key in value}
    channels = config["input_size"][0] if "input_size" in config else None
    for key in ("mean", "std"):
        if key in config and channels and len(config[key]) not in (1, channels):
            raise ValueError(f"{key} must be of the {channels} channels of input_size, got {shown(config[key])}")
    return {key: tuple(item) if isinstance(item, list) else item for key, item in config.items()}


def check_class_names(value: Any) -> list[str]:
    """Names of classes.

    Raises:
        ValueError: if it is no list of texts that can be shown.
    """
    if not (isinstance(value, list | tuple) and all(_is_text(name) for name in value)):
        raise ValueError(f"it must be a list of names without control characters, got {shown(value)}")
    return list(value)


def check_num_classes(value: Any) -> int:
    """A number of classes, perhaps in digits; 0 is a network's without a classifier.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not _is_integer(value, 0, _MOST_CLASSES):
        raise ValueError(f"it must be a number from 0 to {_MOST_CLASSES}, got {shown(value)}")
    return value


def check_model_args(value: Any) -> dict[str, Any]:
    """Arguments of `timm.create_model`.

    Raises:
        ValueError: if they are no object, would read other files, or are out of all proportion.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, got {shown(value)}")
    _check_size({"model_args": value})  # as a config.json has them
    if strange := sorted(_FILE_ARGUMENTS & value.keys()):
        raise ValueError(f"it would read other files: {', '.join(strange)}")
    level = list(value.values())
    while level:
        for item in level:
            if isinstance(item, int | float) and not -_GREATEST <= item <= _GREATEST:
                raise ValueError(f"its numbers must be from {-_GREATEST} to {_GREATEST}, got {shown(item)}")
        level = _parts(level)
    return value


def of_network(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of `timm.create_model` that a file may have: without what says where weights were read."""
    return {key: value for key, value in arguments.items() if key not in _FILE_ARGUMENTS}


def check_ranges(value: Any) -> dict[str, Any]:
    """What the bytes of a quantized network stand for, as `adderzoo.inference.quantization.ranges` gives it.

    Raises:
        ValueError: naming what is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, got {shown(value)}")
    if not _is_integer(value.get("bits"), BITS[0], BITS[-1]):
        raise ValueError(f"bits must be an integer from {BITS[0]} to {BITS[-1]}, got {shown(value.get('bits'))}")
    quantizers = value.get("quantizers")
    if not (
        isinstance(quantizers, dict)
        and all(
            isinstance(known, list | tuple)
            and len(known) == 2
            and _is_number(known[0], 1e-38, 1e38)
            and _is_integer(known[1], 0, 2 ** value["bits"] - 1)
            for known in quantizers.values()
        )
    ):
        raise ValueError(
            f"quantizers must be an object of scales, above 0, and zero points of {value['bits']} bits, got "
            f"{shown(quantizers)}"
        )
    return value


def check_config(value: Any) -> dict[str, Any]:
    """A config.json in timm's format, of a network with its weights in a repository or folder.

    Raises:
        ValueError: naming what is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, got {shown(value)}")
    if not _is_text(value.get("architecture")):
        raise ValueError(f"architecture must be a name, got {shown(value.get('architecture'))}")
    nested = value.get("pretrained_cfg", value)  # an older format has no level of its own
    if not isinstance(nested, dict):
        raise ValueError(f"pretrained_cfg must be an object, got {shown(nested)}")
    checks: dict[str, Callable[[Any], Any]] = {
        "num_classes": check_num_classes,
        "label_names": check_class_names,
        "labels": check_class_names,
        "model_args": check_model_args,
    }
    for level in (value, nested):
        for key, check in checks.items():
            if level.get(key) is not None:
                try:
                    check(level[key])
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from error
    check_data_config({key: item for key, item in nested.items() if item is not None})
    return value
