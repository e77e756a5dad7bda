"""Publish trained weights: the file, its row of results.json, its line of SHA256SUMS and its model card.

    python scripts/reproduce/publish_weights.py NAME.TAG CHECKPOINT --result RESULT.json --dataset TEXT \\
        --command TEXT --recipe TEXT [--out DIR]
    python scripts/reproduce/publish_weights.py NAME.TAG CHECKPOINT --result SET5.json SET14.json ... \\
        --command TEXT --recipe TEXT [--out DIR]
    python scripts/reproduce/publish_weights.py bicubic --result SET5.json SET14.json ... --command TEXT [--out DIR]

CHECKPOINT is what `adderzoo train` writes, RESULT.json what `adderzoo validate --json` does for it, and DIR
adderzoo/weights, where `pretrained=True` finds them. The network's `default_cfgs` must have the tag. Networks for
super-resolution have a result for each test set, which says its name. `bicubic` has no weights: published are the
figures that cards show beside a network's own.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import adderzoo.models
from adderzoo.catalogue import Accuracy, Quality, SetQuality, task
from adderzoo.publish.weights import add_baseline, add_weights, check_name


def read_accuracy(path: Path, name: str, **texts: str) -> Accuracy:
    """The accuracy in a result of `adderzoo validate`.

    Raises:
        ValueError: if the file is no such result, or that of another network.
    """
    result = _read(path, name, ("images", "top1", "top1_se"))
    return Accuracy(images=result["images"], top1=result["top1"], top1_se=result["top1_se"], **texts)


def read_quality(path: Path, name: str) -> SetQuality:
    """PSNR and SSIM in a result of `adderzoo validate` for a network for super-resolution.

    Raises:
        ValueError: if the file is no such result, or that of another network or of its self-ensemble.
    """
    result = _read(path, name, ("psnr", "ssim", "scale"))
    if result.get("self_ensemble") is not False:
        raise ValueError(f"{path} is not the result of the network alone: measure it without --self-ensemble")
    if not (isinstance(result.get("images"), list) and isinstance(result.get("dataset"), str)):
        raise ValueError(f"{path} is no result of `adderzoo validate --json` for super-resolution")
    return SetQuality(result["dataset"], result["scale"], len(result["images"]), result["psnr"], result["ssim"])


def _read(path: Path, name: str, numbers: tuple[str, ...]) -> dict[str, Any]:
    """A result that has these numbers."""
    try:
        result = dict(json.loads(path.read_text()))
        model = str(result["model"])
        for key in numbers:
            if not isinstance(result[key], int | float):
                raise TypeError(f"{key} is {result[key]!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of `adderzoo validate --json`: {error!r}") from error
    if model.partition(".")[0] != name.partition(".")[0]:
        raise ValueError(f"{path} is the result of another network than {name}: {model}")
    return result


def publish(args: argparse.Namespace) -> list[Path]:
    """The files that were written.

    Raises:
        ValueError: if an argument is missing or too much, or as `add_weights`.
        OSError: if a file cannot be read or written.
    """
    if args.name != "bicubic":
        check_name(args.name)
    classifier = task(args.name.partition(".")[0]) == "image-classification"
    needed = {"checkpoint": args.name != "bicubic", "dataset": classifier, "recipe": args.name != "bicubic"}
    for argument, is_needed in needed.items():
        if is_needed != (getattr(args, argument) is not None):
            raise ValueError(f"{argument} must {'' if is_needed else 'not '}be given for {args.name}")
    if classifier:
        if len(args.result) > 1:
            raise ValueError(f"result must be one file for {args.name}, a classifier, got {len(args.result)}")
        texts = {"dataset": args.dataset, "command": args.command, "recipe": args.recipe}
        accuracy = read_accuracy(args.result[0], args.name, **texts)
        return [*add_weights(args.name, args.checkpoint, accuracy, args.out).values()]
    test_sets = tuple(read_quality(path, args.name) for path in args.result)
    quality = Quality(test_sets, args.command, args.recipe or "")
    if args.name == "bicubic":
        return add_baseline(quality, args.out)
    return [*add_weights(args.name, args.checkpoint, quality, args.out).values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME.TAG")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, nargs="?")
    parser.add_argument("--result", metavar="RESULT.json", type=Path, required=True, nargs="+")
    parser.add_argument("--dataset", metavar="TEXT", help="what was measured on, for a classifier")
    parser.add_argument("--command", metavar="TEXT", required=True, help="what trained and measured the weights")
    parser.add_argument("--recipe", metavar="TEXT", help="how, in a sentence or two")
    parser.add_argument("--out", metavar="DIR", type=Path, default=adderzoo.models.WEIGHTS)
    try:
        files = publish(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"publish_weights.py: error: {error}")
    print(*files, sep="\n")


if __name__ == "__main__":
    main()
