"""`adderzoo predict`."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ._network import add_device_argument, add_network_arguments, names_its_tag, open_network, say
from ._parser import Parser
from ._results import add_json_argument, open_results

if TYPE_CHECKING:
    from adderzoo.layers.modules import Network


def add_arguments(parser: Parser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image file, or folder of images")
    add_network_arguments(parser)
    parser.add_argument(
        "--topk",
        metavar="K",
        type=int,
        default=5,
        help="number of most likely classes to show (default: %(default)s)",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        type=Path,
        help="file with the names of the classes, one per line (default: those that the file of weights or the "
        "tag has, else their indices)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=32,
        help="images per batch (default: %(default)s)",
    )
    add_device_argument(parser)
    add_json_argument(parser, "files, classes and probabilities")
    parser.explain(
        "IMAGE... -m NAME [options]",
        "adderzoo predict demo/digits/test/3/0908.png -m adder_lenet5.digits",
        "adderzoo predict demo/digits/test/7 -m adder_lenet5.digits --topk 1 --json demo/sevens.json",
        notes="Photographs are named by the classes of the network's training images: `adder_resnet20.cifar10` "
        "knows ten. If one of several images cannot be read, the others are still shown, and the exit status "
        "is 1.",
    )


def run(args: Namespace) -> None:
    from adderzoo.data import find_images
    from adderzoo.engine.group import open_device
    from adderzoo.pipelines import Classifier

    with open_results(args) as results:
        found = find_images(args.images)
        device = open_device(args.device)
        model = open_network(args, device)
        names = class_names(model, args)
        classifier = Classifier(model, class_names=names, device=device, batch_size=args.batch_size)
        if any(path.is_dir() for path in args.images):
            say(args, found.describe())
        predictions, failures = [], list[str]()
        for prediction in classifier.stream(found.images, args.topk, failed=lambda error: failures.append(str(error))):
            predictions.append(prediction.as_dict())
            results.show(prediction)
        results.write(predictions)
        if failures:
            raise ValueError("; ".join(failures))


def class_names(model: "Network", args: Namespace) -> list[str]:
    """A name for every class, from where the arguments say, the checkpoint or the weights' tag; else its index.

    Raises:
        ValueError: if the names that the user gives, or the checkpoint has, are not as many as the network's classes.
    """
    from adderzoo.pipelines.classifier import name_classes

    if args.class_names:
        return name_classes(model, _read_lines(args.class_names), source=f"class-names {args.class_names}")
    return name_classes(model, checkpoint=args.checkpoint, described=names_its_tag(args))


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"class-names {path} is no text in UTF-8: {error}") from error
