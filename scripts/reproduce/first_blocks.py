"""Weights to start a shallower network from: the first blocks of each stage of a deeper one.

    python scripts/reproduce/first_blocks.py NAME.TAG SHALLOWER OUT.safetensors

A residual network without some of its blocks is a bad network, but no random one: `adder_resnet20.cifar10` without two
of three blocks of each stage is right on four of ten images once BatchNorm knows what it sees. OUT is for `adderzoo
train --model SHALLOWER --initial-checkpoint OUT`, and says where it comes from.
"""

import argparse
from pathlib import Path

import timm
from timm.models import get_pretrained_cfg

import adderzoo  # registers the networks
from adderzoo.checkpoints import save_weights

assert adderzoo

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("deeper", metavar="NAME.TAG")
parser.add_argument("shallower", metavar="SHALLOWER")
parser.add_argument("out", metavar="OUT.safetensors", type=Path)
args = parser.parse_args()

cfg = get_pretrained_cfg(args.deeper)
weights = timm.create_model(args.deeper, pretrained=True).state_dict()
model = timm.create_model(args.shallower, num_classes=cfg.num_classes)
missing = sorted(model.state_dict().keys() - weights.keys())
if missing:
    parser.error(f"{args.deeper} must have the blocks of {args.shallower}, it has no {', '.join(missing[:4])}")
model.load_state_dict({key: weights[key] for key in model.state_dict()})
said = {"architecture": args.shallower, "num_classes": str(cfg.num_classes), "source": f"{args.deeper}, first blocks"}
save_weights(model, args.out, said | ({"license": cfg.license} if cfg.license else {}))
