"""Files of weights: the tensors in them, and what a safetensors file says of itself."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .foreign import (
    check_class_names,
    check_data_config,
    check_model_args,
    check_num_classes,
    check_ranges,
    parse_json,
    shown,
    some_of,
    why,
)
from .output import write_atomically


def read_state_dict(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch checkpoint, which is read without running any code in it.

    A state dict may lie in dictionaries, whatever their keys, as training scripts store it ("state_dict", "model",
    "params_ema" ...). Of timm's two, "state_dict_ema" comes before "state_dict", as in timm.

    Args:
        path: The file.
        key: Which of several state dicts: the keys that lead to it, with dots between, and behind them what the names
            of its tensors begin with, if there are others beside it.

    Raises:
        ValueError: if the file is missing, damaged, no checkpoint, a pickle that would run code, or has several state
            dicts, or none under `key`; the message says which.
    """
    found = _state_dicts(path)
    if key is None:
        if found.keys() == {"state_dict", "state_dict_ema"}:
            return found["state_dict_ema"]
        if len(found) > 1:
            raise ValueError(
                f"{path} has several state dicts, under {some_of([*found], 12)}: which one? `adderzoo convert --key` "
                "takes one of them"
            )
        return next(iter(found.values()))
    for where, state_dict in found.items():
        if where == key:
            return state_dict
        prefix = f"{key}.".removeprefix(f"{where}." if where else "")
        if f"{key}.".startswith(where) and (some := _beneath(state_dict, prefix)):
            return some
    raise ValueError(f"{path} has no state dict under the key {key!r}, but under {some_of([*found], 12)}")


def _beneath(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _state_dicts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Those in a file, at least one, by the keys that lead to them."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        try:
            return {"": load_file(path)}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle's version: the error says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling bytes that are no checkpoint raises nearly anything
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise ValueError(f"{path} is refused, since reading it could run code: {why(error)}") from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged: {why(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no state dict, but an object of type {type(content).__name__}")
    if found := dict(_find_state_dicts(content, (), set())):
        return found
    keys = some_of([shown(key) for key in content])
    raise ValueError(f"{path} holds no state dict, but other things under {len(content)} keys: {keys}")


def _find_state_dicts(
    content: Mapping[Any, Any], keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries of tensors in one, but for an optimizer's; each once, should they contain themselves."""
    seen.add(id(content))
    if content and all(isinstance(key, str) and _is_plain(value) for key, value in content.items()):
        yield ".".join(keys), dict(content)
        return
    for key, value in content.items():
        if not isinstance(key, str) or "optim" in key.lower() or len(keys) == 8:
            continue
        if isinstance(value, Mapping) and id(value) not in seen:
            yield from _find_state_dicts(value, (*keys, key), seen)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing for other files.

    Raises:
        ValueError: if a safetensors file is missing or damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def is_quantized(path: Path) -> bool:
    """Whether a file is of a quantized network, which is more than weights.

    Raises:
        ValueError: as :func:`read_metadata`.
    """
    return "quantization" in read_metadata(path)


def read_num_classes(path: Path) -> int | None:
    """The number of classes that a safetensors file has in its metadata (`num_classes`), if it has.

    Raises:
        ValueError: as :func:`read_metadata`, or if it is no number.
    """
    return _read(path, "num_classes")


def read_classes(path: Path) -> list[str] | None:
    """The class names that a safetensors file has in its metadata (`classes`, a JSON list), if it has.

    Raises:
        ValueError: as :func:`read_metadata`, or if they are no list of names.
    """
    return _read(path, "classes")


def read_data_config(path: Path) -> dict[str, Any]:
    """How images become input, as a safetensors file has it in its metadata (`data_config`, JSON); else nothing.

    Raises:
        ValueError: as :func:`read_metadata`, or naming what is no such thing.
    """
    return _read(path, "data_config") or {}


def read_model_args(path: Path) -> dict[str, Any]:
    """Arguments of `timm.create_model`, as a safetensors file has them in its metadata (`model_args`, JSON).

    Raises:
        ValueError: as :func:`read_metadata`, or if they are no JSON object, or would read other files.
    """
    return _read(path, "model_args") or {}


def read_ranges(path: Path, key: str = "ranges") -> dict[str, Any] | None:
    """What bytes stand for, as a safetensors file has it in its metadata (JSON), if it has.

    Args:
        path: The file.
        key: "ranges" of float weights that were trained with those, "quantization" of a quantized network.

    Raises:
        ValueError: as :func:`read_metadata`, or naming what is no such thing.
    """
    return _read(path, key)


# How what metadata say is read and checked.
_SAID: dict[str, tuple[Callable[[str], Any], Callable[[Any], Any]]] = {
    "num_classes": (str, check_num_classes),
    "classes": (parse_json, check_class_names),
    "data_config": (parse_json, check_data_config),
    "model_args": (parse_json, check_model_args),
    "ranges": (parse_json, check_ranges),
    "quantization": (parse_json, check_ranges),
}


def _read(path: Path, key: str) -> Any:
    """What the metadata of a file say under a key, checked; None if they say nothing."""
    text = read_metadata(path).get(key)
    if text is None:
        return None
    parse, check = _SAID[key]
    try:
        return check(parse(text))
    except ValueError as error:
        raise ValueError(f"{path} cannot be used, its metadata {key} is wrong: {error}") from error


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse metadata that could be written, but would be refused when they are read.

    Raises:
        ValueError: naming what is wrong.
    """
    for key, (parse, check) in _SAID.items():
        if key in metadata:
            try:
                check(parse(metadata[key]))
            except ValueError as error:
                raise ValueError(f"{key} cannot be written, since no file may have it: {error}") from error


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def save_weights(model: nn.Module, destination: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights of a network as safetensors, completely or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    write_weights(destination, compact(model.state_dict()), {"format": "pt", **metadata})


def write_weights(destination: Path, weights: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The same of a state dict that is :func:`compact`."""
    # Names of files may be no text, and safetensors has text alone.
    said = {key: value.encode(errors="backslashreplace").decode() for key, value in metadata.items()}
    write_atomically(destination, lambda path: path.write_bytes(save(weights, said)))


def compact(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by themselves: safetensors takes neither views nor strides, PyTorch writes all that a view is of."""
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()}
