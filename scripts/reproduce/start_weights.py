"""Weights to start a network from: those of a network of its kind and another depth or scale.

    python scripts/reproduce/start_weights.py SOURCE NETWORK OUT.safetensors [--checkpoint FILE]

SOURCE is a network with a tag, such as adder_resnet20.cifar10, or without one the network in FILE. A shallower CIFAR
ResNet gets the first blocks of each stage. That is a bad network, but no random one: `adder_resnet20.cifar10` without
two of three blocks of each stage is right on four of ten images once BatchNorm has seen some. A deeper one gets them
all, and for those that are missing copies of the stage's last, whose second BatchNorm is 0: it computes just what the
source does. An EDSR for another scale gets everything but the upsampler as it is ("Enhanced Deep Residual Networks for
Single Image Super-Resolution", section 3.2, starts so too), and in the upsampler for each of the finer pixels the
filters of the nearest one. OUT is for `adderzoo train --model NETWORK --initial-checkpoint OUT`, and says where it
comes from.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adderzoo.checkpoints import create_model, load, read_origin
from adderzoo.files.weights import save_weights
from adderzoo.models.adder_edsr import EDSR


def weights(source: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """The state dict for `network`.

    Raises:
        ValueError: if the two are neither CIFAR ResNets nor EDSRs, or of other kinds or widths.
    """
    known, found = source.state_dict(), {}
    stages: Any = {name: len(stage) for name, stage in source.named_children() if name.startswith("layer")}  # type: ignore[arg-type]
    for key, own in network.state_dict().items():
        stage, _, rest = key.partition(".")
        index, _, name = rest.partition(".")
        new = stage in stages and int(index) >= stages[stage]
        value = known.get(f"{stage}.{stages[stage] - 1}.{name}" if new else key)
        if isinstance(network, EDSR) and stage == "upsample":
            value = _of_finer_pixels(known[f"upsample.0.{name}"], network.conv2.in_channels, own.shape[0])
        if value is None or value.shape != own.shape:
            raise ValueError(f"only depth or scale may differ, the source has no {key} of {tuple(own.shape)}")
        found[key] = torch.zeros_like(value) if new and name in ("bn2.weight", "bn2.bias") else value
    return found


def _of_finer_pixels(value: Tensor, channels: int, filters: int) -> Tensor:
    """(channels * old^2, ...) to (filters, ...) in front of a PixelShuffle: each pixel has those of the nearest."""
    old, new = math.isqrt(value.shape[0] // channels), math.isqrt(filters // channels)
    nearest = ((torch.arange(new) + 0.5) * old / new).long()
    pixels = value.unflatten(0, (channels, old, old))
    return pixels[:, nearest][:, :, nearest].flatten(0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("network", metavar="NETWORK")
    parser.add_argument("out", metavar="OUT.safetensors", type=Path)
    parser.add_argument("--checkpoint", metavar="FILE", type=Path)
    args = parser.parse_args()
    try:
        if args.source.partition("_")[0] != args.network.partition("_")[0]:
            raise ValueError(f"NETWORK must be of the kind of {args.source}, got {args.network}")
        source: Any = (
            load(args.checkpoint, args.source) if args.checkpoint else create_model(args.source, pretrained=True)
        )
        network = create_model(args.network, num_classes=source.num_classes)
        network.load_state_dict(weights(source, network))
    except ValueError as error:
        parser.error(str(error))
    origin = {"trained_from": args.source, "license": source.pretrained_cfg.get("license")}
    if args.checkpoint:
        origin = {"license": None, **read_origin(args.checkpoint)}
    said = {
        "architecture": args.network,
        "num_classes": str(source.num_classes),
        "source": f"{origin['trained_from']}, in another depth or scale",
    }
    save_weights(network, args.out, said | ({"license": origin["license"]} if origin["license"] else {}))


if __name__ == "__main__":
    main()
