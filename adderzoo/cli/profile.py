"""`adderzoo profile`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._network import add_network_arguments, open_network
from ._parser import Parser
from ._results import Results, add_json_argument, open_results
from ._table import align
from .quantize import add_some_images_arguments, check_some_images, open_some_images

if TYPE_CHECKING:
    from adderzoo.analysis.costs import Operations, Profile
    from adderzoo.layers.modules import Network

_TYPES = ("float32", "int8")


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "-m NAME [options]",
        "adderzoo profile -m adder_resnet20.cifar10",
        "adderzoo profile demo/digits -m adder_lenet5.digits --plots demo/profile",
        notes="Counted for one image in evaluation mode: a convolution or linear layer multiplies and adds, an "
        "adder layer adds twice, a binary one has an XNOR and adds, a shift layer shifts and adds, BatchNorm "
        "multiplies and adds; activations, pooling and the additions of shortcuts are not counted. Energy is "
        "that of the operations on a 45 nm chip, without memory; latency that of the operations one after the "
        "other, a multiplication taking 4 cycles and an addition 2 (VIA Nano 2000). Bytes are those of the "
        "parameters; in int8 filters and matrices have 8 bits, those of binary layers 1, of shift layers 5, "
        "and all else stays float32.\n\nThe pictures are operations.png, of the network and its twin; "
        "first_layer.png and filters.png, the distributions of filters, also of the twin where it has "
        "published weights of the same tag; ranges.png, of filters and, with DIR or --dataset, of what goes "
        "into each layer.",
    )
    parser.add_data_dir("folder of the data set: the pictures show the ranges of some of its images layer by layer too")
    add_network_arguments(parser)
    parser.add_argument(
        "--img-size", metavar="N", type=int, help="height and width of the image (default: the network's)"
    )
    add_json_argument(parser, "all counts")
    parser.add_argument(
        "--plots", metavar="FOLDER", type=Path, help="draw pictures of the network in this folder (default: none)"
    )
    add_some_images_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from adderzoo.files.output import check_output_folder

    if args.img_size is not None and args.img_size < 1:
        raise ValueError(f"img-size must be at least 1, got {args.img_size}")
    check_some_images(args)
    if args.plots:
        check_output_folder(args.plots, "plots")
        from adderzoo.analysis.plots import import_matplotlib

        import_matplotlib()
    elif args.data_dir or args.dataset:
        raise ValueError("data-dir and dataset are for plots: name a folder for these")
    with open_results(args) as results:
        _profile(args, results)


def _profile(args: argparse.Namespace, results: Results) -> None:
    from timm.data import resolve_model_data_config

    from adderzoo.analysis.costs import profile

    model = open_network(args, any_task=True).eval()
    images, count = open_some_images(model, args) if args.data_dir or args.dataset else ((), 0)
    name = model.pretrained_cfg.get("architecture") or args.model.partition(".")[0]
    channels, height, width = resolve_model_data_config(model)["input_size"]
    size = (channels, args.img_size or height, args.img_size or width)

    profiles = {name: profile(model, size)}
    twin = _twin(name, model, args)
    if twin:
        profiles |= {twin[0]: profile(twin[1], size)}
    results.write(_report(name, profiles))
    drawn = _draw(model, twin, profiles, args.plots, images, count) if args.plots else ""
    results.show(f"{name}, one image of {'x'.join(map(str, size))}\n\n{_layers(profiles[name])}")
    results.show(f"\n{_totals(profiles)}")
    if drawn:
        results.show(f"\n{drawn}")


def _twin(name: str, model: "Network", args: argparse.Namespace) -> tuple[str, Any] | None:
    """The network of the other kind, by name; with published weights if the network has them too, else on "meta"."""
    import timm
    import torch

    from adderzoo.catalogue import twin
    from adderzoo.checkpoints import create_model
    from adderzoo.files.weights import read_model_args

    other = twin(name)
    if other is None:
        return None
    arguments = (read_model_args(args.checkpoint) if args.checkpoint else {}) | args.model_kwargs
    arguments = {key: value for key, value in arguments.items() if key != "conv_layer"}
    arguments["num_classes"] = model.num_classes
    if args.in_chans is not None:
        arguments["in_chans"] = args.in_chans
    tagged = f"{other}.{model.pretrained_cfg.get('tag', '')}"
    if args.plots and args.published and timm.is_model_pretrained(tagged):
        return other, create_model(tagged, pretrained=True, **arguments).eval()
    with torch.device("meta"):
        return other, create_model(other, **arguments)


def _used(profiles: "Sequence[Profile]") -> list[str]:
    """Operations to show: XNORs and shifts only where there are some."""
    totals = [asdict(profile.operations) for profile in profiles]
    return [key for key in totals[0] if key in ("mul", "add") or any(total[key] for total in totals)]


_TITLES = {"mul": "#Mul", "add": "#Add", "xnor": "#XNOR", "shift": "#Shift", "latency": "latency, cycles"}


def _layers(profile: "Profile") -> str:
    """A line a layer, and their sum."""
    keys = _used([profile])
    rows = [("layer", "type", *(_TITLES[key] for key in keys), "params")]
    for layer in profile.layers:
        counts = asdict(layer.operations)
        cells = (f"{counts[key]:,}" for key in keys)
        rows.append((layer.name or "(itself)", layer.type, *cells, f"{layer.parameters:,}"))
    counts = asdict(profile.operations)
    rows.append(("total", "", *(f"{counts[key]:,}" for key in keys), f"{profile.parameters:,}"))
    return align(rows, left={0, 1})


def _totals(profiles: "dict[str, Profile]") -> str:
    """A column a network."""
    rows = [("network", *profiles)]
    operations = [profile.operations for profile in profiles.values()]
    for key in _used(list(profiles.values())):
        rows.append((_TITLES[key], *(f"{getattr(each, key):,}" for each in operations)))
    for type in _TYPES:
        rows.append((f"energy in {type}, mJ", *(f"{each.energy(type):.3g}" for each in operations)))
    rows.append((_TITLES["latency"], *(_cycles(each) for each in operations)))
    rows.append(("parameters", *(f"{profile.parameters:,}" for profile in profiles.values())))
    for type in _TYPES:
        rows.append((f"bytes in {type}", *(f"{profile.size(type):,}" for profile in profiles.values())))
    return align(rows, left={0})


def _cycles(operations: "Operations") -> str:
    cycles = operations.latency()
    return "-" if cycles is None else f"{cycles:,}"


def _report(name: str, profiles: "dict[str, Profile]") -> dict[str, Any]:
    """Everything, as JSON has it."""
    return {
        "model": name,
        "input_size": list(profiles[name].input_size),
        "layers": [
            {"name": layer.name, "type": layer.type, **asdict(layer.operations), "parameters": layer.parameters}
            for layer in profiles[name].layers
        ],
        "networks": {
            each: {
                **asdict(profile.operations),
                "energy_mj": {type: profile.operations.energy(type) for type in _TYPES},
                "latency_cycles": profile.operations.latency(),
                "parameters": profile.parameters,
                "bytes": {type: profile.size(type) for type in _TYPES},
            }
            for each, profile in profiles.items()
        },
    }


def _draw(
    model: "Network",
    twin: tuple[str, Any] | None,
    profiles: "dict[str, Profile]",
    folder: Path,
    images: Iterable[Any],
    count: int,
) -> str:
    """Write the pictures; what is on them, a line each."""
    from adderzoo.analysis import plots

    name, profile = next(iter(profiles.items()))
    plots.draw_operations(profiles, folder / "operations.png")
    lines = [f"{folder / 'operations.png'}: {', '.join(profiles)}"]
    models = {name: model}
    if twin and not any(parameter.is_meta for parameter in twin[1].parameters()):
        models |= dict([twin])
    try:
        weights = {each: plots.filters(network) for each, network in models.items()}
        plots.draw_first_layer(models, folder / "first_layer.png")
    except ValueError as error:  # filters of bytes, or none, or none of images
        print(f"adderzoo profile: no pictures of filters: {error}", file=sys.stderr)
        return "\n".join(lines)
    lines.append(f"{folder / 'first_layer.png'}: {', '.join(models)}")

    kind = max((layer.kind for layer in profile.layers), key=profile.products)
    varied = [{layer for layer, weight in each.items() if weight.std() > 0} for each in weights.values()]
    layers = [
        layer.name for layer in profile.layers if layer.kind == kind and all(layer.name in each for each in varied)
    ]
    if layers:  # some can be all zeros, as a classifier that is to be trained, and no density fits them
        some = list(dict.fromkeys((layers[0], layers[len(layers) // 2], layers[-1])))
        plots.draw_filters(models, some, folder / "filters.png")
        better = {each: [plots.Fit.of(weights[each][layer]).better for layer in layers] for each in models}
        found = ", ".join(f"{each.count('Laplace')} of {len(layers)} in {network}" for network, each in better.items())
        lines.append(f"{folder / 'filters.png'}: Laplace fits the layers better than Gaussian: {found}")

    plots.draw_ranges(plots.ranges(model, images), name, folder / "ranges.png")
    lines.append(f"{folder / 'ranges.png'}: filters" + (f", and inputs for {count} images" if count else ""))
    return "\n".join(lines)
