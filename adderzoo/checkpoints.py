"""The one door for files: networks, whose they are and whichever the format, are opened and written here."""

import hashlib
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import parse_model_name
from torch import Tensor, fx, nn

from adderzoo.files import foreign
from adderzoo.files.foreign import shown, to_json, weights_in, why
from adderzoo.files.names import no_network
from adderzoo.files.output import in_memory, temporary_folder, write_atomically
from adderzoo.files.weights import (
    compact,
    is_quantized,
    read_classes,
    read_data_config,
    read_metadata,
    read_model_args,
    read_num_classes,
    read_state_dict,
    save_weights,
    write_weights,
)
from adderzoo.hub import from_hub
from adderzoo.inference.quantization import quantize, simulate
from adderzoo.inference.tracing import DROPOUTS
from adderzoo.layers.modules import Network
from adderzoo.models._builder import FOREIGN_SHA256, check_tag
from adderzoo.models._quantized import float_network, load_quantized, load_quantized_as, with_tag
from adderzoo.models._state_dict import (
    ARGUMENT_ERRORS,
    check_input,
    fit,
    is_finite,
    read_description,
    refuse,
    take_description,
    take_preprocessing,
    to_original,
)
from adderzoo.models._super_resolution import is_super_resolution

# SHA-256 of files whose origin is known.
_KNOWN_LICENSES = {FOREIGN_SHA256["ResNet20-AdderNet.pth"]: "BSD-3-Clause"}


# ------------------------------------------------------------------------------------------------------------- opening


def load(
    path: Path | str,
    model: str | nn.Module | None = None,
    num_classes: int | None = None,
    *,
    other_classes: bool = False,
    **arguments: Any,
) -> Network:
    """The network of a file that this package or the AdderNet authors have written.

    That is the float weights of a training, in a file or its folder; a quantized network, which gives the same bits as
    the one that was saved; or a PyTorch checkpoint, the authors' or another one's, which is read without running any
    code in it (see :func:`load_checkpoint`). The network's `pretrained_cfg` has the preprocessing and the `label_names`
    that the file has.

    Args:
        path: The file, or a folder with model.safetensors.
        model: The network, where the file does not name it, or has to be of this one: its name, as `timm.create_model`
            takes it; or a network like it, with any weights. One for float weights gets them, and is returned; one for
            a quantized network is left as it is. `pretrained_cfg` of a name with a tag is that of the tag.
        num_classes: Of a network by name; else what the file says, else the network's default.
        other_classes: Take float weights for another number of classes too, all of them but the classifier.
        arguments: Further ones of `timm.create_model` of a network by name, before those that the file has.

    Returns:
        The network, in training mode as `timm.create_model` makes it; a quantized one in evaluation mode.

    Raises:
        ValueError: if the file is missing, damaged, of another network, or names none and `model` is None; if its
            tensors do not fit exactly, listing which; if `num_classes` is less than 1; if `arguments` are none of the
            network, or there are some for a quantized network or one that is made already.
    """
    path = weights_in(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if num_classes is not None:
        check_num_classes(num_classes)
        arguments["num_classes"] = num_classes
    if isinstance(model, nn.Module) and arguments:
        raise ValueError(f"arguments are for a network by name, got {shown(arguments)} and a {type(model).__name__}")
    network: Any
    if is_quantized(path) and not other_classes:
        return _load_quantized(path, model, arguments)
    if isinstance(model, nn.Module):
        network = model
        read_description(network, path, other_classes)  # refused before there are other weights
        load_checkpoint(network, path, other_classes)
    else:
        said = read_num_classes(path)
        arguments = read_model_args(path) | ({} if said is None else {"num_classes": said}) | arguments
        content = read_state_dict(path)
        network, weights = _open_for(path, model or _name_of(path), arguments, content, other_classes)
        network.load_state_dict(weights)
    take_description(network, path, other_classes)
    return network


def check_num_classes(num_classes: int) -> None:
    """Refuse a number of classes that no classifier has.

    Raises:
        ValueError: if it is no integer, or less than 1.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral):
        raise ValueError(f"num_classes must be an integer, got {shown(num_classes)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def _name_of(path: Path) -> str:
    """The name of the network that a file is of, with its tag if it is a published one.

    Raises:
        ValueError: if it does not say, or there is no such network.
    """
    said = read_metadata(path)
    name = said.get("architecture", "").partition(".")[0]
    if not name:
        raise ValueError(f"{path} does not say which network it is of: pass its name, or a network like it, as `model`")
    if not timm.is_model(name):  # a file of somebody is not to send for others
        raise ValueError(f"{path} is of {shown(name)}, which is no registered network: pass one like it as `model`")
    return with_tag(name, said.get("tag"))


def _load_quantized(path: Path, model: str | nn.Module | None, arguments: dict[str, Any]) -> Any:
    num_classes = (arguments.pop("num_classes", None) if isinstance(model, str) else None) or read_num_classes(path)
    if arguments:
        raise ValueError(f"{path} is a quantized network, which takes no arguments, got {shown(arguments)}")
    if not isinstance(model, str):
        return load_quantized(path, model)
    network: Any = load_quantized_as(path, model.partition(".")[0], num_classes)
    if "." in model:  # else the file's own tag
        with torch.device("meta"):
            tagged: Network = create_model(model)
        network.pretrained_cfg.clear()
        network.pretrained_cfg.update(tagged.pretrained_cfg)
        take_description(network, path)
    return network


def load_checkpoint(model: nn.Module, path: Path, other_classes: bool = False) -> None:
    """Load a checkpoint, of ours or in another format, that fits a network exactly.

    Names may have a prefix (`module.`, `_orig_mod.`, `model.` ...) and be those of the AdderNet authors, or of
    EDSR-PyTorch and BasicSR for an EDSR; what BatchNorm counts may be missing.

    Args:
        model: Network.
        path: File.
        other_classes: Take a checkpoint for another number of classes too, all of it but the classifier.

    Raises:
        ValueError: as :func:`adderzoo.files.weights.read_state_dict`, or listing the keys that do not fit.
    """
    model.load_state_dict(fit(read_state_dict(path), model, path, other_classes))


def check_name(name: str, argument: str = "model") -> None:
    """Refuse a name that timm has no network of, or a tag that the network has none of, with what may have been meant.

    Args:
        name: As `timm.create_model` takes it; what a folder (`local-dir:`) or repository (`hf-hub:`) has shows later.
        argument: That has the name, for the error.

    Raises:
        ValueError: with what may have been meant.
    """
    if ":" in name:
        return
    if not timm.is_model(name):
        raise no_network(name, timm.list_models(), argument)
    check_tag(name, argument)


def names_weights(name: str) -> bool:
    """Whether a name is that of published weights: by its tag, or as that of a folder or repository."""
    return ":" in name or ("." in name and _is_published(name))


def create_model(name: str, **arguments: Any) -> Network:
    """timm's `create_model`.

    Raises:
        ValueError: if there is no such network or tag, or its published weights cannot be had.
    """
    check_name(name)
    try:
        if ":" in name:
            _check_source(name, arguments.get("cache_dir"))
        model: Network = timm.create_model(name, **arguments)
    except (AssertionError, OSError, RuntimeError) as error:
        raise ValueError(f"model {name!r} cannot be created: {error}") from error
    except Exception as error:  # what the text of somebody's folder or repository makes timm and networks raise
        if ":" not in name:
            raise
        raise ValueError(f"model {name!r} cannot be created: {why(error)}") from error
    if arguments.get("pretrained"):
        wrong = [key for key, value in model.state_dict().items() if not is_finite(value)]
        refuse(f"the weights of {name!r} cannot be used", {"with NaN or infinity": wrong})
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


def _open_for(
    path: Path, name: str, arguments: dict[str, Any], content: dict[str, Tensor], other_classes: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    """A network for a file, with arguments that this may have, and its state dict from the tensors in it.

    What does not fit shows on the meta device first, before there is memory for it.

    Raises:
        ValueError: as :func:`create_with`, :func:`check_input` and :func:`fit`.
    """
    with torch.device("meta"):
        trial = create_with(name, arguments)
    check_input(path, trial)
    fit(content, trial, path, other_classes)
    model = create_with(name, arguments)
    return model, fit(content, model, path, other_classes)


def create_with(name: str, arguments: dict[str, Any]) -> Network:
    """:func:`create_model`, for arguments that the user or a file gives."""
    try:
        return create_model(name, **arguments)
    except ARGUMENT_ERRORS as error:
        given = {key: value for key, value in arguments.items() if key != "pretrained"}  # ours
        if not given:
            raise
        raise ValueError(f"model {name!r} cannot be created with the arguments {shown(given)}: {error}") from error


@dataclass(frozen=True)
class Opened:
    """A network, and what its weights are.

    Attributes:
        network: In training mode as `timm.create_model` makes it; a quantized one in evaluation mode.
        name: Of the network, with the tag of published weights.
        weights: What to say of them: "published weights", "weights of FILE", "random weights" or "no weights".
        checkpoint: The file that they are from, unless they are published.
        published: Whether they are those of the tag.
    """

    network: Network
    name: str
    weights: str
    checkpoint: Path | None = None
    published: bool = False


def open_network(
    model: str | Path,
    checkpoint: Path | str | None = None,
    random_weights: bool = False,
    num_classes: int | None = None,
    *,
    in_chans: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    from_command: bool = False,
    **arguments: Any,
) -> Opened:
    """A network that is ready for work: with weights that somebody has trained, unless random ones are asked for.

    Args:
        model: Its name as `timm.create_model` takes it, for the published weights of its tag, without a tag the first;
            or a file that says which network it is of (or the folder of a training), as :func:`load` takes it.
        checkpoint: A file to take the weights from, or the folder of a training, for a network by name.
        random_weights: Leave the weights as they are made.
        num_classes: Of the network; else what the file says, else the network's default.
        in_chans: Channels of its images. Filters of published weights are adapted as timm does.
        mean: Of the images, one number or as many as there are channels, in place of what the network's data
            configuration says.
        std: Likewise.
        from_command: Whether errors name arguments as options of a command, with dashes, or as here.
        arguments: Further ones of `timm.create_model`.

    Raises:
        ValueError: if there is no such network or file, there are no published weights or not for so many classes, or
            they cannot be had; if a file does not fit; as :func:`load`.
    """
    spell = _as_option if from_command else _as_argument
    if num_classes is not None:
        check_num_classes(num_classes)
    if in_chans is not None and in_chans < 1:
        raise ValueError(f"{spell('in_chans')} must be at least 1, got {in_chans}")
    path = None if checkpoint is None else weights_in(checkpoint)
    if not _is_name(model):
        for what, given_beside in (("checkpoint", path is not None), ("random_weights", random_weights)):
            if given_beside:
                raise ValueError(f"{spell(what)} must not be given beside model {model}, which is a file of weights")
        path = weights_in(model)
        if "architecture" not in read_metadata(path):
            both = f"{spell('model', 'NAME')} and {spell('checkpoint', path)}"
            raise ValueError(f"{path} does not say of which network it is: pass {both}")
        model = _name_of(path)
    elif path is not None and random_weights:
        raise ValueError(f"{spell('random_weights')} must not be given beside checkpoint {path}")
    name = str(model)
    if in_chans is not None:
        arguments["in_chans"] = in_chans
    if path is not None:
        opened = Opened(load(path, name, num_classes, **arguments), name, f"weights of {path}", path)
    else:
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        opened = _create_random(name, arguments) if random_weights else _create_pretrained(name, arguments, spell)
    for key, value in (("mean", mean), ("std", std)):
        if value is not None and is_super_resolution(opened.network):
            raise ValueError(f"{key} is for classifiers, but {opened.name} is for super-resolution")
    take_preprocessing(opened.network, in_chans, mean, std)
    return opened


def _as_argument(name: str, value: Any = None) -> str:
    """An argument, perhaps with a value, in an error."""
    return name if value is None else f"{name}={value}"


def _as_option(name: str, value: Any = None) -> str:
    """The same as an option of a command, which a flag is alone."""
    dashed = name.replace("_", "-")
    return dashed if value is None else f"--{dashed}" if value is True else f"--{dashed} {value}"


_Spell = Callable[..., str]


def _is_name(model: str | Path) -> bool:
    """Whether it is the name of a network, and not a file. A name comes first, as a file of that name has a path too.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(model, str) and (":" in model or timm.is_model(model)):
        return True
    path = Path(model)
    if path.exists():
        return False
    if isinstance(model, Path) or len(path.parts) > 1 or path.suffix in _ENDINGS:
        raise ValueError(f"model must be a registered network or a file of weights, but there is no file {model}")
    return True  # for create_model to refuse


# Of files of weights.
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def _create_random(name: str, arguments: dict[str, Any]) -> Opened:
    network = create_with(name, arguments)
    return Opened(network, name, "random weights" if _has_parameters(network) else "no weights")


def _has_parameters(network: nn.Module) -> bool:
    return any(True for _ in network.parameters())


def _create_pretrained(name: str, arguments: dict[str, Any], spell: "_Spell") -> Opened:
    """The network with the published weights of its tag.

    Raises:
        ValueError: if there are none, or not for this number of classes, or they cannot be had.
    """
    other_weights = f"{spell('checkpoint', 'FILE')} gives it other weights, {spell('random_weights', True)} random ones"
    if not _is_published(name):
        with torch.device("meta"):
            trial = create_with(name, arguments)
        if not _has_parameters(trial):
            return _create_random(name, arguments)
        raise ValueError(
            f"model {name} has no published weights: {other_weights}; `adderzoo list --pretrained` shows what has some"
        )
    try:
        network = create_with(name, {"pretrained": True, **arguments})
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            reason = " ".join(str(error.__cause__).split()).rstrip(".")
            raise ValueError(f"the weights of {name!r} cannot be had: {reason}. {other_weights}") from error
        raise
    config = network.pretrained_cfg
    trained = config.get("num_classes")
    if network.num_classes != trained:
        raise ValueError(
            f"{spell('num_classes')} must be {trained}, for which the weights of {name} are published, got "
            f"{network.num_classes}: {other_weights}"
        )
    if ":" not in name:
        name = with_tag(config["architecture"], config.get("tag"))
    return Opened(network, name, "published weights", published=True)


def _is_published(name: str) -> bool:
    """Whether there are weights of a tag; what somebody's folder or repository has, and what no tag is, shows later."""
    if ":" in name or not timm.is_model(name):
        return True
    try:
        return bool(timm.get_pretrained_cfg(name).has_weights)
    except RuntimeError:  # no such tag
        return True


# ------------------------------------------------------------------------------------------------------------- writing


def save(network: nn.Module, path: Path | str, metadata: Mapping[str, str] | None = None, **model_args: Any) -> None:
    """Write a network as safetensors, for :func:`load`, completely or not at all.

    The file names the network's architecture and tag if `timm.create_model` makes it, with `model_args`; else
    :func:`load` has to be given one like it.

    Args:
        network: A float network, or what :func:`adderzoo.quantize` has made.
        path: File to write.
        metadata: What else the file is to say, such as "classes" and "data_config", as `adderzoo train` has them.
        model_args: Arguments of `timm.create_model` that made the float network, beside its number of classes and of
            input channels. Those that say where its weights were read (`pretrained` ...) are left out of the file.

    Raises:
        ValueError: if it is a network that was fused, or calibrated and not quantized; if `model_args` are none that a
            file can have, or make another network; if the file's name does not end in .safetensors.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    save_weights(network, path, {**describe(network, model_args), **(metadata or {})})


def describe(network: nn.Module, model_args: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of a network that :func:`save` writes.

    Args:
        network: As for :func:`save`.
        model_args: Likewise.

    Raises:
        ValueError: as :func:`save`.
    """
    quantization = getattr(network, "quantization", None)
    if quantization is None and isinstance(network, fx.GraphModule):
        raise ValueError(
            f"the network must be a float one or one that quantize() has made, got {type(network).__name__}, which was "
            "fused, or calibrated and not quantized"
        )
    said = {} if quantization is None else {"quantization": to_json(quantization)}
    config: Any = getattr(network, "pretrained_cfg", {})
    architecture, tag = config.get("architecture"), config.get("tag")
    model_args = foreign.of_network(model_args)
    arguments = {"num_classes": getattr(network, "num_classes", None), **model_args}
    if hasattr(network, "in_chans"):
        arguments = {"in_chans": network.in_chans, **arguments}
    try:
        foreign.check_model_args(model_args)
        text = to_json(arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model_args {shown(model_args)} cannot be saved: {error}") from error
    if architecture and _makes(with_tag(architecture, tag), arguments, network):
        said |= {
            "architecture": architecture,
            "model_args": text,
            "data_config": to_json(resolve_model_data_config(network)),
        }
        if tag:
            said["tag"] = tag
        if network.num_classes:
            said["num_classes"] = str(network.num_classes)
    elif model_args:  # without the name, nothing would read them
        made = f"make another {architecture} than this" if architecture else "are for a network of timm.create_model"
        raise ValueError(f"model_args {shown(model_args)} {made}: got a {type(network).__name__}")
    return said


def _makes(architecture: str, arguments: Mapping[str, Any], network: Any) -> bool:
    """Whether `timm.create_model` makes a network like this one, quantized or not."""
    try:
        again = float_network(architecture, arguments)
        if not hasattr(network, "quantization"):
            return _is_like(again, network)
        again = quantize(simulate(again, network.quantization))
    except ValueError:
        return False
    return repr(again) == repr(network) and again.code == network.code


# Settings of modules that matter in training alone.
_OF_TRAINING = {
    *("training", "p", "drop_rate", "drop_prob", "momentum", "grad_checkpointing"),
    *("input_grad", "weight_grad"),
}


def _is_like(made: nn.Module, network: nn.Module) -> bool:
    """Whether a network differs from one that was just made in numbers alone, and in what matters in training.

    Shapes do not tell: an adder network and its CNN twin, or networks of other strides, have the same.
    """
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (made, network)]
    modules = [dict(each.named_modules()) for each in (made, network)]
    return (
        shapes[0] == shapes[1]
        and modules[0].keys() == modules[1].keys()
        and all(
            isinstance(module, DROPOUTS) or _settings(module) == _settings(modules[1][name], vars(module))
            for name, module in modules[0].items()
        )
    )


def _settings(module: nn.Module, names: Container[str] | None = None) -> tuple[type, str]:
    """The class of a module, and its plain attributes by name, of all or of some names."""
    plain_ones = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in _OF_TRAINING
        and (names is None or name in names)
        and isinstance(value, bool | int | float | str | tuple | list | None)
    }
    return type(module), repr(sorted(plain_ones.items()))


# What the registry says of a network, whatever its weights are for.
_ARCHITECTURE = (
    *("input_size", "min_input_size", "fixed_input_size", "pool_size", "first_conv", "classifier"),
    *("interpolation", "crop_pct", "crop_mode", "mean", "std"),
)


def write_local_dir(folder: Path, weights: Path) -> None:
    """Make a folder one that :func:`load` opens, and timm as `local-dir:`, with weights that lie in it.

    model.safetensors is a link to them; a copy, where the file system has no links. config.json says what their
    metadata say, if these name a registered network: timm could make no other.

    Args:
        folder: Of the weights.
        weights: A file of safetensors, as `adderzoo train` writes it.

    Raises:
        ValueError: if the metadata are none.
        OSError: if a file cannot be written.
    """
    said = read_metadata(weights)
    if timm.is_model(said.get("architecture", "")):
        text = to_json(_timm_config(weights, said), indent=2) + "\n"
        write_atomically(folder / "config.json", lambda path: path.write_text(text))
    link = weights_in(folder)
    try:
        with temporary_folder(folder) as temporary:
            (temporary / link.name).symlink_to(weights.name)
            (temporary / link.name).replace(link)
    except OSError:
        write_atomically(link, lambda path: shutil.copyfile(weights, path))


def _timm_config(weights: Path, said: Mapping[str, str]) -> dict[str, Any]:
    """What timm's config.json has to say of weights of a registered network."""
    known = timm.get_pretrained_cfg(said["architecture"]).to_dict()
    config = {key: known[key] for key in _ARCHITECTURE if key in known} | read_data_config(weights)
    if "license" in said:
        config["license"] = said["license"]
    whole: dict[str, Any] = {
        "architecture": said["architecture"],
        "num_classes": read_num_classes(weights),
        "label_names": read_classes(weights),
        "model_args": read_model_args(weights),
        "pretrained_cfg": config,
    }
    return {key: value for key, value in whole.items() if value not in (None, {})}


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
    state_dict = compact(state_dict)
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
        write_weights(destination, state_dict, metadata)
    return metadata
