"""Checkpoint files: the AdderNet authors' format and safetensors."""

import hashlib
import json
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from adderzoo._files import in_memory, write_atomically
from adderzoo.layers import Adder2d
from adderzoo.models._builder import FOREIGN_SHA256, from_original, read_network, to_original

# SHA-256 of files whose origin is known.
_KNOWN_LICENCES = {FOREIGN_SHA256["ResNet20-AdderNet.pth"]: "BSD-3-Clause"}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch checkpoint, which is read without running any code in it.

    A state dict may lie under "state_dict_ema", "state_dict" or "model", as timm's and other training scripts store it.

    Raises:
        ValueError: if the file is missing, damaged, no checkpoint, or a pickle that would run code; the message says
            which.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle's version: the error says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling bytes that are no checkpoint raises nearly anything
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise ValueError(f"{path} is refused, since reading it could run code: {_reason(error)}") from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged: {_reason(error)}") from error
    if isinstance(content, Mapping):
        for key in ("state_dict_ema", "state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no state dict, but an object of type {type(content).__name__}")
    if not content or not all(isinstance(key, str) and _is_plain(value) for key, value in content.items()):
        keys = _some([repr(key) for key in content])
        raise ValueError(f"{path} holds no state dict, but other things under {len(content)} keys: {keys}")
    return dict(content)


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


def read_num_classes(path: Path) -> int | None:
    """The number of classes that a safetensors file has in its metadata (`num_classes`), if it has.

    Raises:
        ValueError: as :func:`read_metadata`, or if it is no number.
    """
    text = read_metadata(path).get("num_classes")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):  # 0 is a network's without a classifier
        raise ValueError(f"{path} has no number in its metadata num_classes, but {text!r}")
    return int(text)


def read_classes(path: Path) -> list[str] | None:
    """The class names that a safetensors file has in its metadata (`classes`, a JSON list), if it has.

    Raises:
        ValueError: as :func:`read_metadata`, or if they are no list of names.
    """
    text = read_metadata(path).get("classes")
    if text is None:
        return None
    try:
        classes = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} has no JSON in its metadata classes: {error}") from error
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"{path} has no list of names in its metadata classes, but {text!r}")
    return classes


def read_data_config(path: Path) -> dict[str, Any]:
    """How images become input, as a safetensors file has it in its metadata (`data_config`, JSON); else nothing.

    Raises:
        ValueError: as :func:`read_metadata`, or if it is no JSON object.
    """
    text = read_metadata(path).get("data_config", "{}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} has no JSON in its metadata data_config: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} has no object in its metadata data_config, but {text!r}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


# Arguments of timm.create_model that a file has no business with.
_FILE_ARGUMENTS = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


def read_model_args(path: Path) -> dict[str, Any]:
    """Arguments of `timm.create_model`, as a safetensors file has them in its metadata (`model_args`, JSON).

    Raises:
        ValueError: as :func:`read_metadata`, or if they are no JSON object, or would read other files.
    """
    try:
        arguments = dict(json.loads(read_metadata(path).get("model_args", "{}")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has no object in its metadata model_args: {error}") from error
    if _FILE_ARGUMENTS & arguments.keys():
        raise ValueError(f"{path} is refused, its metadata model_args would read other files: {arguments}")
    return arguments


def read_origin(path: Path) -> dict[str, str]:
    """What has to be said of weights that are trained on from a checkpoint: `license`, if known, and `trained_from`.

    Raises:
        ValueError: as :func:`read_metadata`.
    """
    said, digest = read_metadata(path), hashlib.sha256(path.read_bytes()).hexdigest()
    origin = f"{said.get('source', path.name)} (SHA-256 {said.get('source_sha256', digest)})"
    if "trained_from" in said:
        origin += f", which was trained from {said['trained_from']}"
    license = said.get("license") or _KNOWN_LICENCES.get(digest)
    return {"trained_from": origin} | ({"license": license} if license else {})


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _reason(error: Exception) -> str:
    """One line of an error: the unpickler's own complaint where there is one, without its advice to trust the file."""
    lines = str(error).strip().splitlines() or [""]
    line = next((line.strip() for line in lines if "unsupported" in line.lower()), lines[0])
    reason = line.partition(" Please use")[0]
    return reason if isinstance(error, RuntimeError | pickle.UnpicklingError) else f"{type(error).__name__} {reason}"


def checkpoint_filter(model: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """The `checkpoint_filter_fn` of the family that a network belongs to."""
    family = sys.modules[type(model).__module__]
    return getattr(family, "checkpoint_filter_fn", lambda state_dict, model: state_dict)


def load_checkpoint(model: nn.Module, path: Path, other_classes: bool = False) -> None:
    """Load a checkpoint, of ours or in the authors' format, that fits a network exactly.

    Args:
        model: Network.
        path: File.
        other_classes: Take a checkpoint for another number of classes too, all of it but the classifier.

    Raises:
        ValueError: as :func:`read_state_dict`, or listing the keys that do not fit.
    """
    content = read_state_dict(path)
    check_architecture(path, model)
    state_dict = checkpoint_filter(model)(content, model)
    if other_classes:
        dropped = from_original(content).keys() - state_dict.keys()  # the BatchNorm on the logits
        state_dict |= _own_classifier(state_dict, model, dropped)
    check_fits(state_dict, model, path)
    model.load_state_dict(state_dict)


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's tensors begin with, as far as a network says."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _own_classifier(state_dict: Mapping[str, Tensor], model: Any, dropped: Set[str]) -> dict[str, Tensor]:
    """The tensors of a network that stand in for those of a classifier for other classes."""
    prefixes = classifier_prefixes(model)
    return {
        key: value
        for key, value in model.state_dict().items()
        if key in dropped
        or (key.startswith(prefixes) and key in state_dict and state_dict[key].shape[:1] != value.shape[:1])
    }


def check_architecture(path: Path, model: nn.Module) -> None:
    """Refuse a file that says it is another network's: an adder network and its CNN twin have the same shapes.

    Raises:
        ValueError: naming both networks; or if the file is a quantised network.
    """
    metadata = read_metadata(path)
    if "quantization" in metadata:
        raise ValueError(f"{path} is a quantised network, not the weights of a float one: adderzoo.load opens it")
    said = metadata.get("architecture", "").partition(".")[0]
    name = getattr(model, "pretrained_cfg", {}).get("architecture")
    if said and name and said != name:
        raise ValueError(f"{path} is a checkpoint of another network than {name}: its metadata says {said}")
    has_filters = any(isinstance(module, Adder2d) for module in model.modules())
    if (
        path.suffix != ".safetensors"
        and not has_filters
        and any(key.endswith(".adder") for key in read_state_dict(path))
    ):
        raise ValueError(f"{path} is a checkpoint of another network than {name}: it has the filters of adder layers")


def check_fits(state_dict: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Refuse tensors that are not exactly those of a network.

    Raises:
        ValueError: listing what is missing, what is unknown and what has another shape.
    """
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state_dict],
        "unknown": [key for key in state_dict if key not in expected],
        "of another shape": [
            f"{key} {tuple(value.shape)} for {tuple(expected[key].shape)}"
            for key, value in state_dict.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        details = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"{path} is a checkpoint of another network than {type(model).__name__}: {details}")


def _some(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


def create_model(name: str, **arguments: Any) -> nn.Module:
    """timm's `create_model`.

    Raises:
        ValueError: if there is no such network or tag, or its published weights cannot be had.
    """
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"model must be a registered network, got {name!r}: `timm.list_models` names them")
    try:
        return timm.create_model(name, **arguments)
    except (AssertionError, OSError, RuntimeError) as error:
        raise ValueError(f"model {name!r} cannot be created: {error}") from error


def open_network(
    name: str,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """A network, with published weights, those of a checkpoint, or random ones.

    Args:
        name: As `timm.create_model` takes it.
        pretrained: With the published weights of its tag.
        checkpoint: With these weights, which have to fit exactly; or a quantised network, whose `pretrained_cfg` is
            that of the tag in `name`, or else its file's, with its own preprocessing.
        num_classes: Of the network; else what the checkpoint's metadata says, else the network's default.
        arguments: Further ones of `timm.create_model`, before those that the checkpoint's metadata has.

    Raises:
        ValueError: as :func:`create_model`, :func:`load_checkpoint`, :func:`read_model_args` and
            :func:`read_num_classes`, if `num_classes` is less than 1, or `arguments` are none of the network, or for a
            quantised one.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if num_classes is None and checkpoint:
        num_classes = read_num_classes(checkpoint)
    if checkpoint and (network := read_network(checkpoint, name.partition(".")[0], num_classes)) is not None:
        if arguments:
            raise ValueError(f"{checkpoint} is a quantised network, which takes no arguments, got {arguments}")
        if "." in name:  # else the file's own tag
            with torch.device("meta"):
                tagged: Any = create_model(name)
            network.pretrained_cfg = tagged.pretrained_cfg | read_data_config(checkpoint)
        return network
    if checkpoint:
        arguments = read_model_args(checkpoint) | arguments
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        model: Any = create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if not arguments:
            raise
        raise ValueError(f"model {name!r} cannot be created with the arguments {arguments}: {error}") from error
    if checkpoint:
        load_checkpoint(model, checkpoint)
        model.pretrained_cfg.update(read_data_config(checkpoint))  # where timm's resolve_model_data_config looks
    return model


def convert(
    source: Path, destination: Path, model_name: str, original: bool = False, num_classes: int | None = None
) -> dict[str, str]:
    """Convert a checkpoint to safetensors, or to the AdderNet authors' format.

    Args:
        source: Checkpoint in either format.
        destination: File to write, .safetensors or, for the authors' format, another extension; it is replaced at
            once or not at all.
        model_name: Registered name of the network, which the checkpoint has to fit.
        original: Write the authors' format: a PyTorch file, keys with the prefix `module.`, filters named `adder`.
        num_classes: Of the network; None for what the source's metadata says, or else the network's own.

    Returns:
        The metadata: architecture, number of classes, name, SHA-256 and licence of the source, and what else it says of
        itself. safetensors carries it.

    Raises:
        ValueError: if the network is unknown or the file is not what it should be; nothing is written.
        OSError: if the destination cannot be written.
    """
    if source.resolve() == destination.resolve():
        raise ValueError(f"destination must be another file than the source, got {destination} twice")
    if not original and destination.suffix != ".safetensors":
        raise ValueError(f"destination must end in .safetensors, got {destination}")
    if original and destination.suffix == ".safetensors":
        raise ValueError(f"destination must not end in .safetensors for the authors' format, got {destination}")
    num_classes = num_classes or read_num_classes(source)
    arguments = read_model_args(source) | ({"num_classes": num_classes} if num_classes else {})
    model = create_model(model_name, **arguments)
    state_dict = from_original(read_state_dict(source))
    check_architecture(source, model)
    check_fits(state_dict, model, source)
    # safetensors takes neither views nor strides, and PyTorch would write all that a view is cut from.
    state_dict = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()}
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    metadata = {
        "license": _KNOWN_LICENCES.get(digest, "unknown"),
        **read_metadata(source),  # classes, preprocessing, licence
        "format": "pt",
        "architecture": model_name,
        **({"num_classes": str(model.num_classes)} if model.num_classes else {}),
        "source": source.name,
        "source_sha256": digest,
    }
    if original:
        write_atomically(destination, in_memory(lambda file: torch.save(to_original(state_dict, model), file)))
    else:
        write_atomically(destination, lambda path: path.write_bytes(save(state_dict, metadata)))
    return metadata


def save_weights(model: nn.Module, destination: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights of a network as safetensors, completely or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    # safetensors takes neither views nor strides.
    weights = {key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    write_atomically(destination, lambda path: path.write_bytes(save(weights, {"format": "pt", **metadata})))
