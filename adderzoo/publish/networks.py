"""The table of networks that the catalogue reads, from the networks themselves."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, split_model_name_tag

from adderzoo import models
from adderzoo.analysis.costs import profile
from adderzoo.catalogue import NETWORKS, ModelInfo, Weights, read_results, read_speeds
from adderzoo.files.foreign import to_json
from adderzoo.files.output import write_atomically
from adderzoo.layers.modules import Network


def registered_names() -> list[str]:
    """The names of this package's networks in timm's registry, as timm sorts them."""
    family = f"{models.__name__}."
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(family)]


def registered_tags(name: str) -> dict[str, bool]:
    """The tags of a network, the one that `pretrained=True` takes first, and whether there are weights of each."""
    default = get_pretrained_cfg(name).tag
    tags = [split_model_name_tag(tagged)[1] for tagged in timm.list_models(name, include_tags=True)]
    published = timm.list_pretrained(name)
    tags.sort(key=lambda tag: (tag != default, tag))
    return {tag: f"{name}.{tag}" in published for tag in tags if tag}


def describe(name: str, cfg: PretrainedCfg | None = None) -> ModelInfo:
    """A network, as it counts itself.

    Args:
        name: Without a tag.
        cfg: The `pretrained_cfg` of weights, whose classes and input size are counted in place of the network's own.
    """
    arguments = {"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0]} if cfg else {}
    with torch.device("meta"):
        model: Network = timm.create_model(name, **arguments).eval()
    channels, height, width = cfg.input_size if cfg else model.pretrained_cfg["input_size"]
    input_size = (channels, height, width)
    costs = profile(model, input_size)
    results, speed = read_results(), read_speeds().get((name, "float32"))
    return ModelInfo(
        name=name,
        parameters=costs.parameters,
        multiply_adds=costs.products("conv"),
        adder_elements=costs.products("adder"),
        input_size=input_size,
        pretrained=tuple(
            Weights(tag, results.get(f"{name}.{tag}")) for tag, there in registered_tags(name).items() if there
        ),
        task="super-resolution" if get_pretrained_cfg(name).num_classes == 0 else "image-classification",
        scale=getattr(model, "scale", None),
        images_per_second=speed.images_per_second if speed else None,
    )


def network_table() -> dict[str, dict[str, Any]]:
    """What :data:`adderzoo.catalogue.NETWORKS` has to say."""
    rows = {name: describe(name) for name in registered_names()}
    return {
        name: {
            "parameters": row.parameters,
            "multiply_adds": row.multiply_adds,
            "adder_elements": row.adder_elements,
            "input_size": list(row.input_size),
            "task": row.task,
            "scale": row.scale,
            "tags": registered_tags(name),
        }
        for name, row in rows.items()
    }


def write_networks(path: Path = NETWORKS) -> None:
    """Write the table, after a network or a tag has been added or changed."""
    rows = (f" {to_json(name)}: {to_json(row)}" for name, row in network_table().items())
    text = "{\n" + ",\n".join(rows) + "\n}\n"  # a network a line
    write_atomically(path, lambda path: path.write_text(text))
