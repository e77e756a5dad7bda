"""Files as `adderzoo train` writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config

from adderzoo.files.weights import save_weights


def write_trained(path: Path, name: str, seed: int, said: Mapping[str, str | None], **arguments: Any) -> Path:
    """Random weights of a network.

    Args:
        path: File to write.
        name: Of the network, with a tag or without.
        seed: Of the weights.
        said: Metadata, over what every file has; None takes something out.
        arguments: Of the network.
    """
    torch.manual_seed(seed)
    model = timm.create_model(name, **arguments)
    metadata: dict[str, str | None] = {
        "architecture": name.partition(".")[0],
        "num_classes": str(model.num_classes),
        "data_config": json.dumps(resolve_model_data_config(model)),
        "command": "adderzoo train",
        "epoch": "7",
        **said,
    }
    save_weights(model, path, {key: value for key, value in metadata.items() if value is not None})
    return path
