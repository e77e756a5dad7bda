"""Checkpoint files: the AdderNet authors' format and safetensors."""

import hashlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from timm.models import parse_model_name
from torch import Tensor, nn

from adderzoo.files import foreign
from adderzoo.files.foreign import plain, shown, why
from adderzoo.files.output import in_memory, write_atomically
from adderzoo.hub import from_hub
from adderzoo.layers import Adder2d
from adderzoo.models._builder import COUNTERS, FOREIGN_SHA256, own_names, read_network, to_original

# SHA-256 of files whose origin is known.
_KNOWN_LICENSES = {FOREIGN_SHA256["ResNet20-AdderNet.pth"]: "BSD-3-Clause"}


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
                f"{path} has several state dicts, under {_some([*found], 12)}: which one? `adderzoo convert --key` "
                "takes one of them"
            )
        return next(iter(found.values()))
    for where, state_dict in found.items():
        if where == key:
            return state_dict
        prefix = f"{key}.".removeprefix(f"{where}." if where else "")
        if f"{key}.".startswith(where) and (some := _beneath(state_dict, prefix)):
            return some
    raise ValueError(f"{path} has no state dict under the key {key!r}, but under {_some([*found], 12)}")


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
    keys = _some([shown(key) for key in content])
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


def read_num_classes(path: Path) -> int | None:
    """The number of classes that a safetensors file has in its metadata (`num_classes`), if it has.

    Raises:
        ValueError: as :func:`read_metadata`, or if it is no number.
    """
    return _read(path, "num_classes", str, foreign.check_num_classes)


def read_classes(path: Path) -> list[str] | None:
    """The class names that a safetensors file has in its metadata (`classes`, a JSON list), if it has.

    Raises:
        ValueError: as :func:`read_metadata`, or if they are no list of names.
    """
    return _read(path, "classes", foreign.parse_json, foreign.check_classes)


def read_data_config(path: Path) -> dict[str, Any]:
    """How images become input, as a safetensors file has it in its metadata (`data_config`, JSON); else nothing.

    Raises:
        ValueError: as :func:`read_metadata`, or naming what is no such thing.
    """
    return _read(path, "data_config", foreign.parse_json, foreign.check_data_config) or {}


def read_model_args(path: Path) -> dict[str, Any]:
    """Arguments of `timm.create_model`, as a safetensors file has them in its metadata (`model_args`, JSON).

    Raises:
        ValueError: as :func:`read_metadata`, or if they are no JSON object, or would read other files.
    """
    return _read(path, "model_args", foreign.parse_json, foreign.check_model_args) or {}


def read_ranges(path: Path, key: str = "ranges") -> dict[str, Any] | None:
    """What bytes stand for, as a safetensors file has it in its metadata (JSON), if it has.

    Args:
        path: The file.
        key: "ranges" of float weights that were trained with those, "quantization" of a quantized network.

    Raises:
        ValueError: as :func:`read_metadata`, or naming what is no such thing.
    """
    return _read(path, key, foreign.parse_json, foreign.check_ranges)


def _read(path: Path, key: str, parse: Callable[[str], Any], check: Callable[[Any], Any]) -> Any:
    """What the metadata of a file say under a key, checked; None if they say nothing."""
    text = read_metadata(path).get(key)
    if text is None:
        return None
    try:
        return check(parse(text))
    except ValueError as error:
        raise ValueError(f"{path} cannot be used, its metadata {key} is wrong: {error}") from error


def read_origin(path: Path) -> dict[str, str]:
    """What has to be said of weights that are trained on from a checkpoint: `license`, if known, and `trained_from`.

    Raises:
        ValueError: as :func:`read_metadata`.
    """
    said, digest = read_metadata(path), hashlib.sha256(path.read_bytes()).hexdigest()
    origin = f"{said.get('source', path.name)} (SHA-256 {said.get('source_sha256', digest)})"
    if "trained_from" in said:
        origin += f", which was trained from {said['trained_from']}"
    license = said.get("license") or _KNOWN_LICENSES.get(digest)
    return {"trained_from": origin} | ({"license": license} if license else {})


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def network_name(model: nn.Module) -> str:
    """What a network is called in messages: its registered name, if it has one."""
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


def checkpoint_filter(model: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """The `checkpoint_filter_fn` of the family that a network belongs to."""
    family = sys.modules[type(model).__module__]
    return getattr(family, "checkpoint_filter_fn", own_names)


def load_checkpoint(model: nn.Module, path: Path, other_classes: bool = False) -> None:
    """Load a checkpoint, of ours or in another format, that fits a network exactly.

    Names may have a prefix (`module.`, `_orig_mod.`, `model.` ...) and be those of the AdderNet authors, or of
    EDSR-PyTorch and BasicSR for an EDSR; what BatchNorm counts may be missing.

    Args:
        model: Network.
        path: File.
        other_classes: Take a checkpoint for another number of classes too, all of it but the classifier.

    Raises:
        ValueError: as :func:`read_state_dict`, or listing the keys that do not fit.
    """
    model.load_state_dict(fit(read_state_dict(path), model, path, other_classes))


def fit(content: dict[str, Tensor], model: nn.Module, path: Path, other_classes: bool = False) -> dict[str, Tensor]:
    """The state dict of a network, which may be on the meta device, from the tensors of a file.

    Raises:
        ValueError: as :func:`load_checkpoint`.
    """
    check_architecture(path, model, content)
    try:
        named, state_dict = own_names(content, model), checkpoint_filter(model)(content, model)
    except ValueError as error:
        raise ValueError(f"{path} is not taken: {error}") from error
    dropped = model.state_dict().keys() & named.keys() - state_dict.keys()  # the BatchNorm on other logits
    if other_classes:
        state_dict |= _own_classifier(state_dict, model, dropped)
    else:
        state_dict |= {key: named[key] for key in dropped}
    check_fits(state_dict, model, path)
    return state_dict


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


def check_architecture(path: Path, model: nn.Module, content: Mapping[str, Tensor]) -> None:
    """Refuse a file that says it is another network's: an adder network and its CNN twin have the same shapes.

    Args:
        path: The file.
        model: The network.
        content: The tensors of the file.

    Raises:
        ValueError: naming both networks; or if the file is a quantized network.
    """
    metadata = read_metadata(path)
    if "quantization" in metadata:
        raise ValueError(f"{path} is a quantized network, not the weights of a float one: adderzoo.load opens it")
    said = metadata.get("architecture", "").partition(".")[0]
    name = getattr(model, "pretrained_cfg", {}).get("architecture")
    if said and name and said != name:
        raise ValueError(f"{path} is a checkpoint of another network than {name}: its metadata says {plain(said)}")
    has_filters = any(isinstance(module, Adder2d) for module in model.modules())
    if not has_filters and any(key.endswith(".adder") for key in content):
        name = network_name(model)
        raise ValueError(f"{path} is a checkpoint of another network than {name}: it has the filters of adder layers")


def check_fits(state_dict: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Refuse tensors that are not exactly those of a network, or are no numbers to compute with.

    Raises:
        ValueError: listing what is missing or unknown, has another shape or kind of numbers, or has NaN or infinity.
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
    _refuse(f"{path} is a checkpoint of another network than {network_name(model)}", problems)
    weights = {key: value for key, value in state_dict.items() if not key.endswith(COUNTERS)}
    _refuse(
        f"{path} has no weights of {network_name(model)}",
        {
            "of another kind of numbers": [
                f"{key} {value.dtype} for {expected[key].dtype}"
                for key, value in weights.items()
                if _kind(value) != _kind(expected[key])
            ],
            "with NaN or infinity": [key for key, value in weights.items() if not is_finite(value)],
        },
    )


def _refuse(what: str, problems: Mapping[str, list[str]]) -> None:
    if any(problems.values()):
        details = "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"{what}: {details}")


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def is_finite(tensor: Tensor) -> bool:
    """Whether it has neither NaN nor infinity; of the meta device, where there are no numbers, it has none."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all())


def _some(keys: list[str], most: int = 4) -> str:
    return ", ".join(map(plain, keys[:most])) + (", ..." if len(keys) > most else "")


def create_model(name: str, **arguments: Any) -> nn.Module:
    """timm's `create_model`.

    Raises:
        ValueError: if there is no such network or tag, or its published weights cannot be had.
    """
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"model must be a registered network, got {name!r}: `timm.list_models` names them")
    try:
        if ":" in name:
            _check_source(name, arguments.get("cache_dir"))
        model: nn.Module = timm.create_model(name, **arguments)
    except (AssertionError, OSError, RuntimeError) as error:
        raise ValueError(f"model {name!r} cannot be created: {error}") from error
    except Exception as error:  # what the text of somebody's folder or repository makes timm and networks raise
        if ":" not in name:
            raise
        raise ValueError(f"model {name!r} cannot be created: {why(error)}") from error
    if arguments.get("pretrained"):
        wrong = [key for key, value in model.state_dict().items() if not is_finite(value)]
        _refuse(f"the weights of {name!r} cannot be used", {"with NaN or infinity": wrong})
    return model


def _check_source(name: str, cache_dir: Any) -> None:
    """Refuse a config.json of a folder (`local-dir:`) or of a repository of the Hub (`hf-hub:`) that is none.

    Raises:
        ValueError: naming what is wrong.
        OSError: if there is no such file.
    """
    source, where = parse_model_name(name)
    if source == "local-dir":
        path = Path(where) / "config.json"
    else:
        path = from_hub(where, filename="config.json", cache_dir=cache_dir)
    try:
        foreign.check_config(foreign.parse_json(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"its {path.name} is wrong: {error}") from error


# What arguments that are none of a network make it raise.
ARGUMENT_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError)


def _open_for(
    path: Path, name: str, arguments: dict[str, Any], content: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """A network for a file, with arguments that this may have, and its state dict from the tensors in it.

    What does not fit shows on the meta device first, before there is memory for it.

    Raises:
        ValueError: as :func:`_create_with`, :func:`check_input` and :func:`fit`.
    """
    with torch.device("meta"):
        trial = _create_with(name, arguments)
    check_input(path, trial, read_data_config(path))
    fit(content, trial, path)
    model = _create_with(name, arguments)
    return model, fit(content, model, path)


def check_input(checkpoint: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Refuse a data configuration whose images a network, on the meta device, cannot take.

    Raises:
        ValueError: naming the file that has it.
    """
    if "input_size" not in config:
        return
    size, name = config["input_size"], network_name(model)
    channels = getattr(model, "in_chans", size[0])
    if size[0] != channels:
        raise ValueError(
            f"{checkpoint} says input_size {size} in its metadata data_config, {name} has {channels} channels"
        )
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *size, device="meta"))
    except (RuntimeError, ValueError, *ARGUMENT_ERRORS) as error:
        raise ValueError(
            f"{checkpoint} says input_size {size} in its metadata, but {name} does not take that: {error}"
        ) from error
    model.train(training)


def _create_with(name: str, arguments: dict[str, Any]) -> Any:
    """:func:`create_model`, for arguments that the user or a file gives."""
    try:
        return create_model(name, **arguments)
    except ARGUMENT_ERRORS as error:
        given = {key: value for key, value in arguments.items() if key != "pretrained"}  # ours
        if not given:
            raise
        raise ValueError(f"model {name!r} cannot be created with the arguments {shown(given)}: {error}") from error


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
        checkpoint: With these weights, which have to fit exactly; or a quantized network, whose `pretrained_cfg` is
            that of the tag in `name`, or else its file's, with its own preprocessing.
        num_classes: Of the network; else what the checkpoint's metadata says, else the network's default.
        arguments: Further ones of `timm.create_model`, before those that the checkpoint's metadata has.

    Raises:
        ValueError: as :func:`create_model`, :func:`load_checkpoint`, :func:`read_model_args` and
            :func:`read_num_classes`, if `num_classes` is less than 1, or `arguments` are none of the network, or for a
            quantized one.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if num_classes is None and checkpoint:
        num_classes = read_num_classes(checkpoint)
    if checkpoint and (network := read_network(checkpoint, name.partition(".")[0], num_classes)) is not None:
        if arguments:
            raise ValueError(f"{checkpoint} is a quantized network, which takes no arguments, got {arguments}")
        if "." in name:  # else the file's own tag
            with torch.device("meta"):
                tagged: Any = create_model(name)
            network.pretrained_cfg = tagged.pretrained_cfg | read_data_config(checkpoint)
        return network
    if checkpoint:
        arguments = read_model_args(checkpoint) | arguments
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if checkpoint is None:
        return _create_with(name, {"pretrained": pretrained, **arguments})
    model, weights = _open_for(checkpoint, name, arguments, read_state_dict(checkpoint))
    model.load_state_dict(weights)
    model.pretrained_cfg.update(read_data_config(checkpoint))  # where timm's resolve_model_data_config looks
    return model


def convert(
    source: Path,
    destination: Path,
    model_name: str,
    original: bool = False,
    num_classes: int | None = None,
    key: str | None = None,
) -> dict[str, str]:
    """Convert a checkpoint to safetensors, or to the AdderNet authors' format.

    Args:
        source: Checkpoint in either format.
        destination: File to write, .safetensors or, for the authors' format, another extension; it is replaced at
            once or not at all.
        model_name: Registered name of the network, which the checkpoint has to fit.
        original: Write the authors' format: a PyTorch file, keys with the prefix `module.`, filters named `adder`.
        num_classes: Of the network; None for what the source's metadata says, or else the network's own.
        key: Which of several state dicts in the source, as :func:`read_state_dict` takes it.

    Returns:
        The metadata: architecture, number of classes, name, SHA-256 and license of the source, and what else it says of
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
    model, state_dict = _open_for(source, model_name, arguments, read_state_dict(source, key))
    # safetensors takes neither views nor strides, and PyTorch would write all that a view is cut from.
    state_dict = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()}
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    metadata = {
        "license": _KNOWN_LICENSES.get(digest, "unknown"),
        **read_metadata(source),  # classes, preprocessing, license
        "format": "pt",
        "architecture": model_name,
        **({"num_classes": str(model.num_classes)} if model.num_classes else {}),
        "source": source.name,
        "source_sha256": digest,
    }
    if original:
        write_atomically(destination, in_memory(lambda file: torch.save(to_original(state_dict, model), file)))
    else:
        _write(destination, state_dict, metadata)
    return metadata


def save_weights(model: nn.Module, destination: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights of a network as safetensors, completely or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    # safetensors takes neither views nor strides.
    weights = {key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    _write(destination, weights, {"format": "pt", **metadata})


def _write(destination: Path, weights: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    # Names of files may be no text, and safetensors has text alone.
    said = {key: value.encode(errors="backslashreplace").decode() for key, value in metadata.items()}
    write_atomically(destination, lambda path: path.write_bytes(save(weights, said)))
