"""Publish trained weights: the file, its row of results.json, its line of SHA256SUMS and its model card.

    python scripts/reproduce/publish_weights.py NAME.TAG CHECKPOINT --result RESULT.json --dataset TEXT \\
        --command TEXT --recipe TEXT [--out DIR]

CHECKPOINT is what `adderzoo train` writes, RESULT.json what `adderzoo validate --results-file` does for it, and DIR
adderzoo/weights, where `pretrained=True` finds them. The network's `default_cfgs` must have the tag.
"""

import argparse
import json
import sys
from pathlib import Path

import adderzoo.models
from adderzoo.hub import Measurement
from adderzoo.publishing import add_weights


def read_result(path: Path, name: str, **texts: str) -> Measurement:
    """The accuracy in a result of `adderzoo validate`.

    Raises:
        ValueError: if the file is no such result, or that of another network.
    """
    try:
        result = json.loads(path.read_text())
        model, images = str(result["model"]), int(result["images"])
        measured = Measurement(images=images, top1=float(result["top1"]), top1_se=float(result["top1_se"]), **texts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of `adderzoo validate --results-file` in JSON: {error!r}") from error
    if model.partition(".")[0] != name.partition(".")[0]:
        raise ValueError(f"{path} is the result of another network than {name}: {model}")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME.TAG")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--result", metavar="RESULT.json", type=Path, required=True)
    parser.add_argument("--dataset", metavar="TEXT", required=True, help="what was measured on")
    parser.add_argument("--command", metavar="TEXT", required=True, help="what trained and measured the weights")
    parser.add_argument("--recipe", metavar="TEXT", required=True, help="how, in a sentence or two")
    parser.add_argument("--out", metavar="DIR", type=Path, default=adderzoo.models.WEIGHTS)
    args = parser.parse_args()
    texts = {"dataset": args.dataset, "command": args.command, "recipe": args.recipe}
    try:
        files = add_weights(args.name, args.checkpoint, read_result(args.result, args.name, **texts), args.out)
    except (ValueError, OSError) as error:
        sys.exit(f"publish_weights.py: error: {error}")
    print(*files.values(), sep="\n")


if __name__ == "__main__":
    main()
