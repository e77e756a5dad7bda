"""`adderzoo upscale`."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import weights_in

from ._network import add_model_kwargs, load_or_create, say

if TYPE_CHECKING:
    from torch import Tensor

    from adderzoo.data.photos import Photo
    from adderzoo.models import SuperResolutionNet

_CROP = 96  # pixels a side of what --compare shows
_ZOOM = 3  # how many times as large it shows them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", metavar="PHOTO", nargs="+", type=Path, help="image file, or folder of images")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="image file to write; of a folder or several files, the folder for images of the same names",
    )
    parser.add_argument("--scale", metavar="S", type=int, help="how many times as large (that of the network, else 2)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="network (the first adder network with published weights that were measured at this scale)",
    )
    parser.add_argument("--checkpoint", metavar="FILE", type=weights_in, help="its weights (those that are published)")
    add_model_kwargs(parser)
    parser.add_argument(
        "--tile",
        metavar="N",
        type=int,
        default=256,
        help="pixels a side of the parts that the image is cut into, which bound the memory (%(default)s)",
    )
    parser.add_argument("--self-ensemble", action="store_true", help="mean over the eight flips and rotations")
    parser.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="take PHOTO for the original: make it smaller, and write a picture of a part of it, side by side as "
        "bicubic interpolation, the network and its CNN twin make it larger, and as it was",
    )
    parser.add_argument(
        "--crop",
        metavar=("X", "Y"),
        nargs=2,
        type=int,
        help="upper left corner of that part (where most details are)",
    )
    parser.add_argument("--twin-checkpoint", metavar="FILE", type=weights_in, help="weights of the twin, for --compare")
    parser.epilog = (
        "Gray images stay gray; 16 bits of PNG, TIFF and PPM are kept in PNG and TIFF. EXIF, color profile and "
        "resolution are kept where OUT's format has a place for them, EXIF orientation is applied. An alpha channel is "
        "interpolated, and colors under transparent pixels do not show. All frames of an animation are made larger, "
        "with their timing (GIF, PNG, WebP), and all pages of a TIFF. Tiles overlap as far as the network looks: the "
        "result differs from that of the whole image by rounding alone. Of several images, one "
        "that cannot be read does not keep the others from being written, but ends in exit status 1."
    )


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from adderzoo.data.photos import check_photo, loses_bits, read_photo, write_photo
    from adderzoo.engine.group import open_device
    from adderzoo.files.output import write_atomically

    if args.tile < 1:
        raise ValueError(f"tile must be at least 1, got {args.tile}")
    if (args.crop or args.twin_checkpoint) and not args.compare:
        raise ValueError(f"{'crop' if args.crop else 'twin-checkpoint'} is for compare, which is not asked for")
    outputs = _outputs(args)
    if len(outputs) == 1:  # before the network is opened
        for source, destination in outputs.items():
            photo = read_photo(source)
            if not args.compare:
                check_photo(photo, destination)
    device = open_device(args.device)
    name, model = _open_network(args)
    model = _for_inference(model, device)
    if args.compare:
        picture = _compare(args, photo, name, model)
        write_atomically(args.output, picture.save)
        return
    failures = []
    counts = {source: _count_tiles(source, args.tile, model) for source in outputs}
    with tqdm(total=sum(counts.values()), unit="tile", leave=None) as bar:
        for source, destination in outputs.items():
            bar.set_description(source.name)
            try:
                if len(outputs) > 1:
                    photo = read_photo(source)
                check_photo(photo, destination, model.scale)
                if loses_bits(photo, destination):
                    bar.write(f"adderzoo upscale: {destination} has 8 bits; .png and .tif keep 16", file=sys.stderr)
                bar.total += (len(photo.frames) - 1) * counts[source]
                larger = _upscale(args, photo, model, bar)
                write_atomically(destination, partial(write_photo, larger))
            except ValueError as error:
                failures.append(str(error))
                continue
            height, width = larger.color.shape[1:]
            bar.write(f"{destination}: {width}x{height} pixels{_others(larger, destination)}, by {name}")
    if failures:
        raise ValueError("; ".join(failures))


def _outputs(args: argparse.Namespace) -> dict[Path, Path]:
    """Where each image goes.

    Raises:
        ValueError: if there are no images, OUT is not what it has to be, or an image would replace another.
    """
    from adderzoo.data import check_file, find_images
    from adderzoo.files.output import check_image_output

    one = len(args.photos) == 1 and not args.photos[0].is_dir()
    if args.compare and not one:
        raise ValueError(f"compare takes one PHOTO, got {' '.join(map(str, args.photos))}")
    if one and not args.output.is_dir():
        check_file(args.photos[0])
        check_image_output(args.output, "OUT")
        return {args.photos[0]: args.output}
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"OUT must be a folder for the larger images, got the file {args.output}")
    if not args.output.exists() and args.output.suffix:
        raise ValueError(f"OUT must be a folder for the larger images, got a name that ends as a file's, {args.output}")
    outputs: dict[Path, Path] = {}
    folders = {}
    for photo in args.photos:
        found = find_images([photo])
        if photo.is_dir():
            folders[photo] = found
        for source in map(Path, found.images):
            destination = args.output / (source.relative_to(photo) if photo.is_dir() else source.name)
            check_image_output(destination, "OUT")
            if source in outputs:
                continue
            if destination in outputs.values():
                other = next(path for path, value in outputs.items() if value == destination)
                raise ValueError(f"{other} and {source} would both become {destination}")
            outputs[source] = destination
    originals = {source.resolve() for source in outputs}
    for destination in outputs.values():
        if destination.resolve() in originals:
            raise ValueError(f"OUT must be another folder than that of the images: {destination} is one of them")
    for folder, found in folders.items():
        say(args, f"{folder}: {found.describe()}")
    return outputs


def _count_tiles(path: Path, side: int, model: "SuperResolutionNet") -> int:
    """Of one frame; 0 if the file cannot be read, of which there will be more to say."""
    from adderzoo.data.pixels import read_size
    from adderzoo.engine.super_resolution import tiles

    try:
        return len(tiles(*read_size(path), side, model.radius))
    except ValueError:
        return 0


def _others(photo: "Photo", path: Path) -> str:
    from adderzoo.data.photos import written_frames

    count = len(written_frames(photo, path))
    return f" in {count} {'frames' if photo.animation else 'pages'}" if count > 1 else ""


def _open_network(args: argparse.Namespace) -> tuple[str, Any]:
    """The network's name and the network, in evaluation mode.

    Raises:
        ValueError: as :func:`load_or_create`, if there are no weights for it, if it is for another
            task or scale.
    """
    from adderzoo.catalogue import Quality, networks
    from adderzoo.files.weights import is_quantized
    from adderzoo.models import is_super_resolution

    name, scale = args.model, args.scale
    if name is None:
        if args.checkpoint:
            raise ValueError("checkpoint needs model, the name of the network that it is of")
        scale = scale or 2
        published = [
            info.name
            for info in networks("adder_*", pretrained=True)
            for weights in info.pretrained
            if isinstance(weights.measured, Quality)
            and scale in {test_set.scale for test_set in weights.measured.test_sets}
        ]
        if not published:
            raise ValueError(
                f"no adder network has published weights that were measured at scale {scale}: name one with --model, "
                "and its weights with --checkpoint"
            )
        name = published[0]
    arguments = dict(args.model_kwargs)
    quantized = args.checkpoint and is_quantized(args.checkpoint)
    if scale is not None and not quantized:
        arguments["scale"] = scale
    pretrained = args.checkpoint is None and name.partition(".")[0] != "bicubic"
    model: Any = load_or_create(name, pretrained, args.checkpoint, **arguments)
    if not is_super_resolution(model):
        raise ValueError(f"model must be a network for super-resolution, got {name!r}, which is a classifier")
    if scale not in (None, model.scale):
        raise ValueError(f"scale must be that of {name}, {model.scale}, got {scale}")
    return name, model.eval()


def _for_inference(model: Any, device: Any) -> Any:
    import torch

    from adderzoo import fuse

    if not hasattr(model, "quantization"):
        model = fuse(model)
    return model.to(device).to(memory_format=torch.channels_last)


def _run(
    args: argparse.Namespace, model: "SuperResolutionNet", color: "Tensor", progress: Callable[[Any], Any]
) -> "Tensor":
    """A larger image, in color."""
    import torch

    from adderzoo.engine import upscale

    return upscale(model, color.expand(3, -1, -1), args.tile, args.self_ensemble, torch.channels_last, progress)


def _upscale(args: argparse.Namespace, photo: "Photo", model: "SuperResolutionNet", bar: Any) -> "Photo":
    """All frames of an image, larger."""
    from adderzoo.data import as_float, as_integers
    from adderzoo.data.photos import spread_colors
    from adderzoo.layers.image import BicubicUpsample

    def progress(tiles: Any) -> Any:
        for tile in tiles:
            yield tile
            bar.update()

    frames = []
    for frame in photo.frames:
        color, alpha = frame.color, frame.alpha
        if alpha is not None:
            # As far as the network sees from where the larger alpha channel fades out.
            color = spread_colors(color, alpha, model.radius + 3)
            alpha = as_integers(BicubicUpsample(model.scale)(as_float(alpha)[None])[0], alpha.dtype)
        larger = _run(args, model, color, progress)
        if len(color) == 1:
            larger = as_integers(as_float(larger).mean(0, keepdim=True), larger.dtype)
        frames.append(replace(frame, color=larger, alpha=alpha))
    return replace(frames[0], others=tuple(frames[1:]))


# ---------------------------------------------------------------------------------------------------------- comparison


def _compare(args: argparse.Namespace, photo: "Photo", name: str, model: "SuperResolutionNet") -> Any:
    """A picture of a part of the photograph as each network makes it larger from a smaller one."""
    import torch
    from tqdm import tqdm

    from adderzoo.data import as_float, as_integers, downscale
    from adderzoo.layers.image import luma
    from adderzoo.models.interpolation import Bicubic

    scale = model.scale
    color = as_integers(as_float(photo.color)).expand(3, -1, -1)
    height, width = (side - side % scale for side in color.shape[1:])
    if min(height, width) < _CROP:
        raise ValueError(f"image {args.photos[0]} must have at least {_CROP} pixels a side to be compared")
    color = color[:, :height, :width]
    left, top = args.crop or _most_detailed(luma(as_float(color))[0])
    if not (0 <= left <= width - _CROP and 0 <= top <= height - _CROP):
        raise ValueError(f"crop must be from 0 0 to {width - _CROP} {height - _CROP}, got {left} {top}")

    networks = {"bicubic": _for_inference(Bicubic(scale).eval(), torch.device("cpu")), name: model}
    networks |= _open_twin(args, name, model)
    # As much around the part as any network sees, and the interpolation that makes it smaller.
    margin = scale * (max(network.radius for network in networks.values()) + 4)
    rows, first_row = _around(top, margin, scale, height)
    columns, first_column = _around(left, margin, scale, width)
    around = color[:, rows, columns]
    small = downscale(around, scale)
    part = (slice(None), slice(first_row, first_row + _CROP), slice(first_column, first_column + _CROP))
    panels = {
        title: _run(args, network, small, partial(tqdm, desc=title, unit="tile", leave=None))[part]
        for title, network in networks.items()
    }
    return _picture(panels, around[part])


def _around(start: int, margin: int, scale: int, size: int) -> tuple[slice, int]:
    """What lies around a part, in multiples of the scale, and where the part begins in it."""
    first = max(start - margin, 0) // scale * scale
    last = min(-(-(start + _CROP + margin) // scale) * scale, size)
    return slice(first, last), start - first


def _most_detailed(y: "Tensor") -> tuple[int, int]:
    """X and Y of the part with the largest differences between neighbors."""
    import torch.nn.functional as F

    detail = (y[1:, 1:] - y[1:, :-1]).abs() + (y[1:, 1:] - y[:-1, 1:]).abs()
    sums = F.avg_pool2d(detail[None, None], _CROP - 1, stride=8)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return 8 * column, 8 * row


def _open_twin(args: argparse.Namespace, name: str, model: "SuperResolutionNet") -> dict[str, Any]:
    """The CNN twin by its name, if there are weights for it."""
    from adderzoo.catalogue import twin

    network, _, tag = name.partition(".")
    other = twin(network)
    if other is None:
        return {}
    if args.twin_checkpoint is None:
        import timm

        wanted = f"{other}.{tag}" if tag else other
        if not timm.list_models(wanted, pretrained=True):
            print(f"adderzoo upscale: no weights for {other}: name them with --twin-checkpoint", file=sys.stderr)
            return {}
        other = wanted
    arguments = {**dict(args.model_kwargs), "scale": model.scale}
    cnn = load_or_create(other, args.twin_checkpoint is None, args.twin_checkpoint, **arguments)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    return {other: _for_inference(cnn.eval(), device)}


def _picture(panels: dict[str, "Tensor"], original: "Tensor") -> Any:
    """The panels and the original side by side, each with its name and PSNR below."""
    from PIL import Image, ImageDraw

    from adderzoo.engine import psnr
    from adderzoo.layers.image import luma

    side, gap, text = _CROP * _ZOOM, 8, 36
    titles = {
        title: f"{title}\n{psnr(luma(panel.double(), 255), luma(original.double(), 255)):.2f} dB"
        for title, panel in panels.items()
    }
    shown = {**panels, "original": original}
    picture = Image.new("RGB", (len(shown) * (side + gap) - gap, side + text), "white")
    draw = ImageDraw.Draw(picture)
    for index, (title, panel) in enumerate(shown.items()):
        image = Image.fromarray(panel.permute(1, 2, 0).contiguous().numpy())
        picture.paste(image.resize((side, side), Image.Resampling.NEAREST), (index * (side + gap), 0))
        draw.multiline_text((index * (side + gap), side + 4), titles.get(title, title), fill="black")
    return picture
