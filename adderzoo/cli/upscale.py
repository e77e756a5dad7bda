"""`adderzoo upscale`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._network import add_model_kwargs, open_device

if TYPE_CHECKING:
    from torch import Tensor

    from adderzoo.data.photos import Photo

_CROP = 96  # pixels a side of what --compare shows
_ZOOM = 3  # how many times as large it shows them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", type=Path, help="image file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="image file to write")
    parser.add_argument("--scale", metavar="S", type=int, help="how many times as large (that of the network, else 2)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="network (the first adder network with published weights that were measured at this scale)",
    )
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="its weights (those that are published)")
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
    parser.add_argument("--twin-checkpoint", metavar="FILE", type=Path, help="weights of the twin, for --compare")
    parser.epilog = (
        "Grey images stay grey, 16-bit PNGs 16-bit; an alpha channel is interpolated, colour profiles are kept; EXIF "
        "orientation is applied. Tiles overlap, so that the result is that of the whole image."
    )


def run(args: argparse.Namespace) -> None:
    from adderzoo._files import check_image_output, write_atomically
    from adderzoo.data import check_file
    from adderzoo.data.photos import read_photo, write_photo

    if args.tile < 1:
        raise ValueError(f"tile must be at least 1, got {args.tile}")
    if (args.crop or args.twin_checkpoint) and not args.compare:
        raise ValueError(f"{'crop' if args.crop else 'twin-checkpoint'} is for compare, which is not asked for")
    check_image_output(args.output, "OUT")
    check_file(args.photo)
    photo = read_photo(args.photo)
    device = open_device(args.device)
    name, model = _open_network(args)
    model = _for_inference(model, device)
    if args.compare:
        picture = _compare(args, photo, name, model)
        write_atomically(args.output, picture.save)
        return
    height, width = (model.scale * side for side in photo.color.shape[1:])
    mode = ("L" if len(photo.color) == 1 else "RGB") + ("A" if photo.alpha is not None else "")
    check_image_output(args.output, "OUT", (width, height), mode)
    larger = _upscale(args, photo, model)
    write_atomically(args.output, lambda path: write_photo(larger, path))
    print(f"{args.output}: {width}x{height} pixels, by {name}")


def _open_network(args: argparse.Namespace) -> tuple[str, Any]:
    """The network's name and the network, in evaluation mode.

    Raises:
        ValueError: as :func:`adderzoo.checkpoints.open_network`, if there are no weights for it, if it is for another
            task or scale.
    """
    from adderzoo.checkpoints import open_network, read_metadata
    from adderzoo.hub import Quality, list_models
    from adderzoo.models import is_super_resolution

    name, scale = args.model, args.scale
    if name is None:
        if args.checkpoint:
            raise ValueError("checkpoint needs model, the name of the network that it is of")
        scale = scale or 2
        published = [
            info.name
            for info in list_models("adder_*", pretrained=True)
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
    quantised = args.checkpoint and "quantization" in read_metadata(args.checkpoint)
    if scale is not None and not quantised:
        arguments["scale"] = scale
    pretrained = args.checkpoint is None and name.partition(".")[0] != "bicubic"
    model: Any = open_network(name, pretrained, args.checkpoint, **arguments)
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


def _run(args: argparse.Namespace, model: Any, color: "Tensor", description: str) -> "Tensor":
    """A larger image, in colour, with a progress bar."""
    import torch
    from tqdm import tqdm

    from adderzoo.engine import upscale

    return upscale(
        model,
        color.expand(3, -1, -1),
        args.tile,
        args.self_ensemble,
        torch.channels_last,
        progress=lambda tiles: tqdm(tiles, desc=description, unit="tile", leave=None),
    )


def _upscale(args: argparse.Namespace, photo: "Photo", model: Any) -> "Photo":
    from adderzoo.data import as_float, as_integers
    from adderzoo.data.photos import Photo
    from adderzoo.layers.image import BicubicUpsample

    color = _run(args, model, photo.color, args.photo.name)
    if len(photo.color) == 1:
        color = as_integers(as_float(color).mean(0, keepdim=True), color.dtype)
    alpha = photo.alpha
    if alpha is not None:
        alpha = as_integers(BicubicUpsample(model.scale)(as_float(alpha)[None])[0], alpha.dtype)
    return Photo(color, alpha, photo.icc_profile)


# ---------------------------------------------------------------------------------------------------------- comparison


def _compare(args: argparse.Namespace, photo: "Photo", name: str, model: Any) -> Any:
    """A picture of a part of the photograph as each network makes it larger from a smaller one."""
    import torch

    from adderzoo.data import as_float, as_integers, downscale
    from adderzoo.layers.image import luma
    from adderzoo.models.interpolation import Bicubic

    scale = model.scale
    color = as_integers(as_float(photo.color)).expand(3, -1, -1)
    height, width = (side - side % scale for side in color.shape[1:])
    if min(height, width) < _CROP:
        raise ValueError(f"image {args.photo} must have at least {_CROP} pixels a side to be compared")
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
    panels = {title: _run(args, network, small, title)[part] for title, network in networks.items()}
    return _picture(panels, around[part])


def _around(start: int, margin: int, scale: int, size: int) -> tuple[slice, int]:
    """What lies around a part, in multiples of the scale, and where the part begins in it."""
    first = max(start - margin, 0) // scale * scale
    last = min(-(-(start + _CROP + margin) // scale) * scale, size)
    return slice(first, last), start - first


def _most_detailed(y: "Tensor") -> tuple[int, int]:
    """X and Y of the part with the largest differences between neighbours."""
    import torch.nn.functional as F

    detail = (y[1:, 1:] - y[1:, :-1]).abs() + (y[1:, 1:] - y[:-1, 1:]).abs()
    sums = F.avg_pool2d(detail[None, None], _CROP - 1, stride=8)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return 8 * column, 8 * row


def _open_twin(args: argparse.Namespace, name: str, model: Any) -> dict[str, Any]:
    """The CNN twin by its name, if there are weights for it."""
    from adderzoo.checkpoints import open_network
    from adderzoo.hub import twin

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
    cnn = open_network(other, args.twin_checkpoint is None, args.twin_checkpoint, **arguments)
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
