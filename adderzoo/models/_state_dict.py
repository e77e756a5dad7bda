"""Checkpoints as a network's own names have it, and whether they fit."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from adderzoo.files.foreign import check_data_config, plain, some_of
from adderzoo.files.weights import read_classes, read_data_config, read_metadata
from adderzoo.layers import Adder2d

# What arguments that are none of a network make it raise.
ARGUMENT_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError)

# What the names of BatchNorm's counters end with. None of the networks needs them, and some files do without.
COUNTERS = "num_batches_tracked"


def checkpoint_filter(model: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """The `checkpoint_filter_fn` of the family that a network belongs to."""
    family = sys.modules[type(model).__module__]
    return getattr(family, "checkpoint_filter_fn", own_names)


def own_names(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict as a network names its tensors, without the prefix that wrappers have put before their names.

    The AdderNet authors' checkpoints have `module.` there, of DataParallel, and filters named `adder`; `torch.compile`
    makes it `_orig_mod.`, Lightning's modules `model.` or `net.`, and one may be inside another. A prefix is known by
    the network's names behind it, all or at least most of them. Counters of BatchNorm that are missing are 0.

    Raises:
        ValueError: if behind several prefixes there are all names of the network.
    """
    renamed = {_rename(key, "adder", "weight"): value for key, value in state_dict.items()}
    own = model.state_dict()
    fitting = without_prefix(renamed, {key for key in own if not key.endswith(COUNTERS)})
    for key in own:
        if key.endswith(COUNTERS) and key.removesuffix(COUNTERS) + "running_mean" in fitting:
            fitting.setdefault(key, torch.tensor(0))
    return fitting


def without_prefix(state_dict: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The tensors behind the prefix that these names have in a state dict; all, if most have none.

    Raises:
        ValueError: if behind several prefixes there are all names.
    """
    counts: Counter[str] = Counter()
    for key in state_dict:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    fitting = [prefix for prefix, count in counts.items() if count == len(names)]
    if len(fitting) > 1 and "" not in fitting:
        raise ValueError(
            f"all names of the network are there several times, behind {', '.join(fitting)}: which ones? `adderzoo "
            "convert --key` takes one of these"
        )
    prefix, count = counts.most_common(1)[0] if counts else ("", 0)
    if not prefix or counts[""] == count or 2 * count <= len(names):
        return state_dict
    others = [key for key in state_dict if not key.startswith(prefix)]
    if others:
        warnings.warn(
            f"{len(others)} tensors are left out of the checkpoint, since the network's names are behind {prefix!r}: "
            f"{', '.join(others[:4])}{', ...' if len(others) > 4 else ''}",
            stacklevel=2,
        )
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def to_original(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """As the AdderNet authors' checkpoints have it: `module.` in front, and filters named `adder`."""
    filters = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Adder2d)}
    return {
        "module." + (_rename(key, "weight", "adder") if key in filters else key): value
        for key, value in state_dict.items()
    }


def _rename(key: str, old: str, new: str) -> str:
    return key.removesuffix(old) + new if key.endswith("." + old) else key


def drop_other_classes(state_dict: dict[str, Tensor], model: nn.Module, logits_norm: str) -> dict[str, Tensor]:
    """Without the BatchNorm on the logits, if `model` has another number of classes.

    timm drops the classifier's own weight and bias in this case, but does not know of what follows it.
    """
    weight = state_dict.get(f"{logits_norm}.weight")
    if weight is None or weight.shape[0] == model.num_classes:
        return state_dict
    return {key: value for key, value in state_dict.items() if not key.startswith(f"{logits_norm}.")}


def repeat_input_channels(state_dict: dict[str, Tensor], layer: str, norm: str, in_chans: int) -> dict[str, Tensor]:
    """With the filters of an adder layer repeated for `in_chans` channels, and the BatchNorm behind it to match.

    n copies of a channel are n times as far from n copies of a filter. (timm's rule, filters divided by n, is a
    convolution's.)
    """
    weight = state_dict.get(f"{layer}.weight")
    if weight is None or weight.shape[1] == in_chans:
        return state_dict
    times = in_chans / weight.shape[1]
    return state_dict | {
        f"{layer}.weight": weight[:, torch.arange(in_chans) % weight.shape[1]],
        f"{norm}.running_mean": state_dict[f"{norm}.running_mean"] * times,
        f"{norm}.running_var": state_dict[f"{norm}.running_var"] * times**2,
    }


# -------------------------------------------------------------------------------------------------------------- fitting


def network_name(model: nn.Module) -> str:
    """What a network is called in messages: its registered name, if it has one."""
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


def fit(content: dict[str, Tensor], model: nn.Module, path: Path, other_classes: bool = False) -> dict[str, Tensor]:
    """The state dict of a network, which may be on the meta device, from the tensors of a file.

    Raises:
        ValueError: as of :func:`check_architecture` and :func:`check_fits`.
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
    refuse(f"{path} is a checkpoint of another network than {network_name(model)}", problems)
    weights = {key: value for key, value in state_dict.items() if not key.endswith(COUNTERS)}
    refuse(
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


def refuse(what: str, problems: Mapping[str, list[str]]) -> None:
    if any(problems.values()):
        details = "; ".join(f"{len(keys)} {kind}: {some_of(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"{what}: {details}")


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def is_finite(tensor: Tensor) -> bool:
    """Whether it has neither NaN nor infinity; of the meta device, where there are no numbers, it has none."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all())


def check_input(checkpoint: Path, model: nn.Module) -> None:
    """Refuse a file for images that a network, on the meta device, cannot take.

    Raises:
        ValueError: naming the file.
    """
    size, name = read_data_config(checkpoint).get("input_size"), network_name(model)
    if size is None:
        return
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


def take_description(model: Any, path: Path, other_classes: bool = False) -> None:
    """Give a network's `pretrained_cfg`, where timm looks, what a file says: preprocessing and names of classes.

    Args:
        model: The network.
        path: The file.
        other_classes: Leave the names out if they are of another number of classes.

    Raises:
        ValueError: if the names are of another number of classes.
    """
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict):
        return
    config.update(read_data_config(path))
    classes = read_classes(path)
    if classes is not None and not (other_classes and len(classes) != model.num_classes):
        check_names(classes, model, str(path))
        config.pop("label_descriptions", None)
        config.update(num_classes=model.num_classes, label_names=tuple(classes))


def take_preprocessing(
    model: Any, in_chans: int | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> None:
    """Give a network's `pretrained_cfg`, where timm looks, the preprocessing that a user asks for.

    Args:
        model: The network, made for images of `in_chans` channels.
        in_chans: Channels of its images. Where mean and std are of another number, and none are given, they are the
            means of those that were there.
        mean: One number, or one of each channel; as they are if None.
        std: Likewise.

    Raises:
        ValueError: naming what does not fit.
    """
    given = {key: tuple(value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    if in_chans is None and not given:
        return
    known = {key: tuple(value) for key, value in resolve_model_data_config(model).items() if key in ("mean", "std")}
    channels, *size = resolve_model_data_config(model)["input_size"]
    channels = channels if in_chans is None else in_chans
    for key, value in known.items():
        if len(value) not in (1, channels):
            known[key] = (sum(value) / len(value),)
    config = check_data_config({"input_size": (channels, *size)} | known | given)
    for key in known:
        if len(config[key]) == 1:
            config[key] *= channels
    model.pretrained_cfg.update(config)


def check_names(names: Sequence[str], model: Any, source: str) -> None:
    """Refuse names of another number of classes than a network has.

    Raises:
        ValueError: naming both numbers.
    """
    if len(names) != model.num_classes:
        raise ValueError(f"{source} has {len(names)} class names, the network {model.num_classes} classes")
