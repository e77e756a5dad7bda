"""`adderzoo upscale`."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import weights_in

from ._network import add_device_argument, add_network_arguments, open_network, say
from ._parser import Parser
from ._results import Results, add_json_argument, open_results

if TYPE_CHECKING:
    from adderzoo.pipelines import Upscaler


def add_arguments(parser: Parser) -> None:
    parser.add_argument("photos", metavar="PHOTO", nargs="+", type=Path, help="image file, or folder of images")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="file to write, or for a folder or several files the folder to write to, under the same names; "
        "existing files are replaced (default: photo_x2.png beside photo.png, photos_x2 beside the folder "
        "photos; existing ones are not replaced)",
    )
    parser.add_argument(
        "--scale",
        metavar="S",
        type=int,
        help="factor for width and height (default: the network's, else 2)",
    )
    add_network_arguments(parser, required=False, classifier=False)
    parser.add_argument(
        "--tile",
        metavar="N",
        type=int,
        default=256,
        help="process the image in tiles of at most N x N pixels; smaller ones need less memory (default: %(default)s)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average the results for the eight flips and rotations of the image, eight times the work (default: "
        "one pass)",
    )
    add_device_argument(parser)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="make PHOTO smaller first, then write a picture that shows a part of it side by side: as bicubic "
        "interpolation, the network and its CNN twin make it larger again, and the original (default: make "
        "PHOTO larger)",
    )
    parser.add_argument(
        "--crop",
        metavar=("X", "Y"),
        nargs=2,
        type=int,
        help="upper left corner of the part that --compare shows, in pixels (default: where most details are)",
    )
    parser.add_argument(
        "--twin-checkpoint",
        metavar="FILE",
        type=weights_in,
        help="weights of the CNN twin for --compare, in place of the published ones",
    )
    add_json_argument(parser, "files and sizes")
    parser.explain(
        "PHOTO... [-o OUT] [options]",
        "adderzoo upscale demo/photos/china.png",
        "adderzoo upscale demo/photos -o demo/larger --json -",
        description="Without -m, the first adder network with published weights for the scale is used.",
        notes="Gray images stay gray; 16 bits of PNG, TIFF and PPM are kept in PNG and TIFF. EXIF, color profile "
        "and resolution are kept where OUT's format has a place for them, EXIF orientation is applied. An "
        "alpha channel is interpolated; the colors of transparent pixels do not bleed into visible ones. All "
        "frames of an animation are made larger, with their timing (GIF, PNG, WebP), and all pages of a TIFF. "
        "Tiles overlap by what the network sees around a pixel, so that results differ from those of the whole "
        "image by rounding alone. If one of several images cannot be read, the others are still written, and "
        "the exit status is 1.",
    )


def run(args: Namespace) -> None:
    from adderzoo.data import find_images
    from adderzoo.engine.group import open_device
    from adderzoo.files.output import write_atomically
    from adderzoo.pipelines import Upscaler, choose_network, compare

    if args.tile < 1:
        raise ValueError(f"tile must be at least 1, got {args.tile}")
    if (args.crop or args.twin_checkpoint) and not args.compare:
        raise ValueError(f"{'crop' if args.crop else 'twin-checkpoint'} is for compare, which is not asked for")
    with open_results(args) as results:
        sources = [Path(image) for image in find_images(args.photos).images]
        if args.compare and (len(sources) > 1 or args.photos[0].is_dir()):
            raise ValueError(f"compare takes one PHOTO, got {' '.join(map(str, args.photos))}")
        outputs = _outputs(args) if args.output else {}  # what is wrong with them shows before a network is opened
        device = open_device(args.device)
        args.model, args.checkpoint, arguments = choose_network(args.model, args.checkpoint, args.scale)
        args.model_kwargs = args.model_kwargs | arguments
        model = open_network(args, device, any_task=True)
        options = {"tile": args.tile, "self_ensemble": args.self_ensemble, "device": device}
        upscaler = Upscaler(model, scale=args.scale, **options)
        upscaler.name = args.model
        outputs = outputs or _outputs(args, f"x{upscaler.scale}" + "_compared" * args.compare)
        if args.compare:
            ((source, destination),) = outputs.items()
            upscalers = {"bicubic": Upscaler("bicubic", scale=upscaler.scale, **options), upscaler.name: upscaler}
            picture = compare(upscalers | _twin(args, upscaler, options), source, args.crop)
            write_atomically(destination, picture.save)
            results.show(f"{destination}: {', '.join(upscalers)} and others beside {source}")
            results.write([{"file": str(source), "output": str(destination), "models": [*upscalers]}])
        else:
            _write(args, upscaler, outputs, results)


def _outputs(args: Namespace, label: str = "") -> dict[Path, Path]:
    from adderzoo.pipelines import name_outputs

    return name_outputs(args.photos, args.output, label, lambda text: say(args, text))


def _write(args: Namespace, upscaler: "Upscaler", outputs: dict[Path, Path], results: Results) -> None:
    """All images, larger, with a progress bar over their tiles."""
    from tqdm import tqdm

    written, failures = [], []
    counts = {source: _count_tiles(source, args.tile, upscaler) for source in outputs}
    with tqdm(total=sum(counts.values()), unit="tile", leave=None) as bar:

        def progress(tiles: list[Any]) -> Iterator[Any]:
            left = counts.pop(source, 0)
            bar.total += len(tiles) - left  # further frames, which the header does not tell
            for tile in tiles:
                yield tile
                bar.update()

        upscaler.progress = progress
        for source, destination in outputs.items():
            bar.set_description(source.name)
            try:
                done = upscaler.write(source, destination)
            except ValueError as error:
                failures.append(str(error))
                continue
            written.append(done.as_dict())
            bar.clear()
            results.show(done)
            if done.loses_bits:
                say(args, f"{destination} has 8 bits; .png and .tif keep 16")
    results.write(written)
    if failures:
        raise ValueError("; ".join(failures))


def _count_tiles(path: Path, side: int, upscaler: "Upscaler") -> int:
    """Of one frame; 0 if the file cannot be read, of which there will be more to say."""
    from adderzoo.data.pixels import read_size
    from adderzoo.engine.super_resolution import tiles

    try:
        return len(tiles(*read_size(path), side, upscaler.radius))
    except ValueError:
        return 0


def _twin(args: Namespace, upscaler: "Upscaler", options: dict[str, Any]) -> dict[str, "Upscaler"]:
    """The CNN twin by its name, if there are weights for it."""
    from timm.models import is_model_pretrained

    from adderzoo.catalogue import twin
    from adderzoo.pipelines import Upscaler

    network, _, tag = upscaler.name.partition(".")
    name = twin(network)
    if name is None:
        return {}
    if args.twin_checkpoint is None:
        name = f"{name}.{tag}" if tag else name
        if not is_model_pretrained(name):
            say(args, f"no weights for {name}: name them with --twin-checkpoint")
            return {}
    arguments = args.model_kwargs | {"scale": upscaler.scale}
    return {name: Upscaler(name, checkpoint=args.twin_checkpoint, **options, **arguments)}
