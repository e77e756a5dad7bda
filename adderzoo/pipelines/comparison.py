"""A picture of what networks for super-resolution make of a photograph that is known."""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from adderzoo.data.image_pairs import as_float, as_integers, downscale
from adderzoo.data.photos import read_photo
from adderzoo.engine.image_quality import psnr
from adderzoo.layers.image import luma

from .upscaler import Upscaler

_CROP = 96  # pixels a side of what is shown
_ZOOM = 3  # how many times as large


def compare(upscalers: Mapping[str, Upscaler], path: Path | str, crop: tuple[int, int] | None = None) -> Image.Image:
    """A part of a photograph as each makes it larger from a smaller one, side by side with the original.

    Args:
        upscalers: By the names that stand below, with the PSNR of the part's Y (BT.601) in decibels; of one scale.
        path: The original.
        crop: X and Y of the part's upper left corner in the original; None for where most details are.

    Raises:
        ValueError: naming the file, if it cannot be read or is too small; if `crop` is beyond its borders, or the
            scales differ.
    """
    scales = {upscaler.scale for upscaler in upscalers.values()}
    if len(scales) != 1:
        raise ValueError(f"upscalers must be of one scale, got {', '.join(map(str, sorted(scales))) or 'none'}")
    (scale,) = scales
    color = as_integers(as_float(read_photo(Path(path)).color)).expand(3, -1, -1)
    height, width = (side - side % scale for side in color.shape[1:])
    if min(height, width) < _CROP:
        raise ValueError(f"image {path} must have at least {_CROP} pixels a side to be compared")
    color = color[:, :height, :width]
    left, top = crop or _most_detailed(luma(as_float(color))[0])
    if not (0 <= left <= width - _CROP and 0 <= top <= height - _CROP):
        raise ValueError(f"crop must be from 0 0 to {width - _CROP} {height - _CROP}, got {left} {top}")
    # As much around the part as any network sees, and the interpolation that makes it smaller.
    margin = scale * (max(upscaler.radius for upscaler in upscalers.values()) + 4)
    rows, first_row = _around(top, margin, scale, height)
    columns, first_column = _around(left, margin, scale, width)
    around = color[:, rows, columns]
    small = downscale(around, scale)
    part = (slice(None), slice(first_row, first_row + _CROP), slice(first_column, first_column + _CROP))
    return _picture({name: upscaler.color(small)[part] for name, upscaler in upscalers.items()}, around[part])


def _around(start: int, margin: int, scale: int, size: int) -> tuple[slice, int]:
    """What lies around a part, in multiples of the scale, and where the part begins in it."""
    first = max(start - margin, 0) // scale * scale
    last = min(-(-(start + _CROP + margin) // scale) * scale, size)
    return slice(first, last), start - first


def _most_detailed(y: Tensor) -> tuple[int, int]:
    """X and Y of the part with the largest differences between neighbors."""
    detail = (y[1:, 1:] - y[1:, :-1]).abs() + (y[1:, 1:] - y[:-1, 1:]).abs()
    sums = F.avg_pool2d(detail[None, None], _CROP - 1, stride=8)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return 8 * column, 8 * row


def _picture(panels: Mapping[str, Tensor], original: Tensor) -> Image.Image:
    """The panels and the original side by side, each with its name and PSNR below."""
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
