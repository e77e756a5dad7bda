"""Running and evaluating networks for super-resolution."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adderzoo.data.image_pairs import WHITE, ImagePairs, as_float, as_integers
from adderzoo.models import SuperResolutionNet

from .evaluation import Execution, check_results
from .image_quality import quality


def upscale(
    model: SuperResolutionNet,
    image: Tensor,
    tile: int | None = None,
    self_ensemble: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
    progress: Callable[[list["Tile"]], Iterable["Tile"]] = iter,
) -> Tensor:
    """A larger image, of tiles where it would not fit into memory at once.

    Tiles overlap by the network's `radius`, so that together they are the result of the whole image but for rounding:
    PyTorch's convolutions add up in another order on another size, after which an integer may be one off.

    Args:
        model: SuperResolutionNet for super-resolution, in evaluation mode.
        image: (3, H, W), RGB, on the network's device or not: float in [0, 1], uint8 or uint16.
        tile: Side of the tiles in pixels of the image; None for one.
        self_ensemble: Mean of the results of the image's eight flips and rotations, each turned back: eight times the
            work for some hundredths of a decibel ("Seven Ways to Improve Example-Based Single Image Super Resolution",
            CVPR 2016; EDSR+).
        memory_format: Feed the images in this one.
        progress: Wraps the list of tiles, to show how far it is.

    Returns:
        (3, scale * H, scale * W), where the image is, of its type: float not clipped, integers clipped and rounded.

    Raises:
        ValueError: if `tile` is less than 1, the image of another type or shape, or a result not finite.
    """
    if image.dim() != 3:
        raise ValueError(f"image must be (3, H, W), got shape {tuple(image.shape)}")
    if not (image.is_floating_point() or image.dtype in WHITE):
        raise ValueError(f"image must be float, uint8 or uint16, got {image.dtype}")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    scale, (_, height, width) = model.scale, image.shape
    device, dtype = _place(model)

    def run(x: Tensor) -> Tensor:
        return model(x.contiguous(memory_format=memory_format))

    result = image.new_empty(3, scale * height, scale * width)
    with torch.inference_mode():
        for part in progress(tiles(height, width, tile or max(height, width, 1), model.radius)):
            x = as_float(image[None, :, part.outer_rows, part.outer_columns].to(device)).to(dtype)
            y = (_ensemble(run, x) if self_ensemble else run(x))[0]
            check_results(y)
            y = (y if image.is_floating_point() else as_integers(y, image.dtype)).to(image.device, image.dtype)
            top, left = (scale * offset for offset in part.offset)
            rows, columns = (slice(scale * s.start, scale * s.stop) for s in (part.rows, part.columns))
            size = (rows.stop - rows.start, columns.stop - columns.start)
            result[:, rows, columns] = y[:, top : top + size[0], left : left + size[1]]
    return result


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        rows: Of the part.
        columns: Of the part.
        outer_rows: What the network has to see for it.
        outer_columns: Likewise.
    """

    rows: slice
    columns: slice
    outer_rows: slice
    outer_columns: slice

    @property
    def offset(self) -> tuple[int, int]:
        """Where the part begins in what the network sees, by rows and columns."""
        return self.rows.start - self.outer_rows.start, self.columns.start - self.outer_columns.start


def tiles(height: int, width: int, side: int, overlap: int) -> list[Tile]:
    """Tiles of at most `side` pixels a side, which see `overlap` pixels around them as far as there are any."""

    def cuts(size: int) -> Iterator[tuple[slice, slice]]:
        count = max(-(-size // side), 1)
        for index in range(count):  # as even as can be: a narrow last one would be nearly all overlap
            start, stop = index * size // count, (index + 1) * size // count
            yield slice(start, stop), slice(max(start - overlap, 0), min(stop + overlap, size))

    return [
        Tile(rows, columns, outer_rows, outer_columns)
        for rows, outer_rows in cuts(height)
        for columns, outer_columns in cuts(width)
    ]


def _ensemble(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    total: Tensor | None = None  # of at least float32
    for flip in (False, True):
        for turns in range(4):
            y = run(torch.rot90(x.flip(3) if flip else x, turns, (2, 3)))
            y = torch.rot90(y, -turns, (2, 3))
            y = y.flip(3) if flip else y
            total = y.to(torch.promote_types(y.dtype, torch.float32)) if total is None else total + y
    assert total is not None
    return total / 8


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network is, and the type of its images; byte networks have float tensors beside their bytes."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


@dataclass(frozen=True)
class ImageQuality:
    """PSNR in decibels and SSIM of one image."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class SuperResolutionResult:
    """What `evaluate_super_resolution` measures: means over the images, and each of them."""

    psnr: float
    ssim: float
    scale: int
    images: list[ImageQuality]
    seconds: float

    @property
    def score(self) -> float:
        """By which epochs of a training are compared."""
        return self.psnr

    def columns(self) -> dict[str, float]:
        """What a line of a training's summary says of it."""
        return {"eval_psnr": self.psnr, "eval_ssim": self.ssim}

    def __str__(self) -> str:
        return (
            f"PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}, x{self.scale}, {len(self.images)} images, "
            f"{self.seconds / len(self.images):.2f} s an image"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None for the PSNR of equal images."""
        row = asdict(self)
        for values in (row, *row["images"]):
            values["psnr"] = values["psnr"] if math.isfinite(values["psnr"]) else None
        return row


def evaluate_super_resolution(
    model: SuperResolutionNet,
    pairs: ImagePairs,
    execution: Execution | None = None,
    tile: int | None = None,
    self_ensemble: bool = False,
    description: str = "",
) -> SuperResolutionResult:
    """PSNR and SSIM of a network for super-resolution as the field measures them, with a progress bar.

    Of the Y of YCbCr (BT.601), of results rounded to bytes, without a border of `scale` pixels; means over the images.

    Args:
        model: Maps (1, 3, H, W) in [0, 1] to images `model.scale` times as large. It is put into evaluation mode.
        pairs: The images, for the network's scale.
        execution: How the model runs; where is where it is.
        tile: As for :func:`upscale`.
        self_ensemble: As for :func:`upscale`.
        description: Text before the progress bar.

    Returns:
        The result; its seconds are those of the network alone.

    Raises:
        ValueError: if the pairs are for another scale, or an image cannot be read or is too small; it is named.
    """
    if pairs.scale != model.scale:
        raise ValueError(f"pairs must be for the network's scale, {model.scale}, got {pairs.scale}")
    model.eval()
    execution = replace(execution or Execution(), device=_place(model)[0])
    memory_format = torch.channels_last if execution.channels_last else torch.contiguous_format
    images: list[ImageQuality] = []
    seconds = 0.0
    with execution.autocast(), tqdm(range(len(pairs)), desc=description, unit="image", leave=None) as progress:
        for index in progress:
            small, large = pairs[index]
            started = time.perf_counter()
            result = upscale(model, small, tile, self_ensemble, memory_format)
            seconds += time.perf_counter() - started
            try:
                images.append(ImageQuality(pairs.name(index), *quality(result, large, pairs.scale)))
            except ValueError as error:
                raise ValueError(f"image {pairs.large[index]}: {error}") from error
            progress.set_postfix_str(f"{sum(image.psnr for image in images) / len(images):.2f} dB", refresh=False)
    return SuperResolutionResult(
        psnr=sum(image.psnr for image in images) / len(images),
        ssim=sum(image.ssim for image in images) / len(images),
        scale=pairs.scale,
        images=images,
        seconds=seconds,
    )
