"""Larger images in one call, and files of them."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from adderzoo.catalogue import Quality, networks
from adderzoo.data.folders import check_file, find_images
from adderzoo.data.image_pairs import as_float, as_integers
from adderzoo.data.inputs import ImageLike, Input, each_input, is_single
from adderzoo.data.photos import Photo, check_photo, loses_bits, read_photo, spread_colors, write_photo, written_frames
from adderzoo.data.pixels import Pixels, to_bytes
from adderzoo.engine.group import open_device
from adderzoo.engine.super_resolution import Tile, upscale
from adderzoo.files.foreign import weights_in
from adderzoo.files.output import check_image_output, is_image_format, write_atomically
from adderzoo.files.weights import is_quantized
from adderzoo.layers.image import BicubicUpsample
from adderzoo.models import is_super_resolution

from ._network import for_inference, open_or_take

TILE = 256


@dataclass(frozen=True)
class Upscaled:
    """An image file that was made larger.

    Attributes:
        file: What was read.
        output: What was written.
        width: Of the larger image, in pixels.
        height: Likewise.
        frames: How many frames or pages `output` has.
        animation: They are frames, with their timing.
        model: The network's name.
        loses_bits: 16 bits have become 8, since the format of `output` has no more.
    """

    file: str
    output: str
    width: int
    height: int
    frames: int
    animation: bool
    model: str
    loses_bits: bool

    def __str__(self) -> str:
        frames = f" in {self.frames} {'frames' if self.animation else 'pages'}" if self.frames > 1 else ""
        return f"{self.output}: {self.width}x{self.height} pixels{frames}, by {self.model}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Upscaler:
    """A network for super-resolution with all that it takes to make images larger.

    ::

        upscaler = adderzoo.Upscaler("adder_edsr_small_x2.bsds400")
        upscaler("photo.png").save("photo_x2.png")
        upscaler.write("photo.png", "photo_x2.png")  # 16 bits, EXIF, color profile, all frames

    Images are those that :class:`Classifier` takes, and come back as they came: a path as a PIL image, arrays and
    tensors of the same type and layout, float in [0, 1]. Gray stays gray. An alpha channel is interpolated, and the
    colors under transparent pixels do not show. Of a file it is the first frame or page; what PIL has no mode for,
    colors of 16 bits, becomes 8 bits in a PIL image, and stays in arrays, tensors and :meth:`write`.

    Args:
        model: A network by name, a file or folder, or a network, as for :class:`Classifier`; None for the first adder
            network with published weights that were measured at this scale.
        scale: How many times as large images become; None for what the network does by default, else 2.
        checkpoint: File or folder of weights for the network by this name, in the place of published ones.
        random_weights: Take the network by this name as it is before any training.
        tile: Side in pixels of the parts that an image is cut into, which bound the memory; None for no parts. They
            overlap as far as the network looks, so that the result is that of the whole image but for rounding.
        self_ensemble: Mean over the image's eight flips and rotations: eight times the work.
        device: As PyTorch names it; "auto" is a GPU if there is one, else the CPU.
        fuse: As for :class:`Classifier`.
        progress: Wraps the list of tiles of an image, to show how far it is, such as `tqdm.tqdm`.
        arguments: Further ones of `timm.create_model`, of a network by name.

    Attributes:
        model: What runs, in evaluation mode: (N, 3, H, W), RGB in [0, 1], to (N, 3, scale * H, scale * W).
        name: Of the network.
        scale: How many times as large images become.
        radius: How many pixels far the network looks.
        device: Where it runs.

    Raises:
        ValueError: if there are no such network, weights or device, or one does not fit the other; naming it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | None = None,
        *,
        scale: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        random_weights: bool = False,
        tile: int | None = TILE,
        self_ensemble: bool = False,
        device: str | torch.device = "auto",
        fuse: bool = True,
        progress: Callable[[list[Tile]], Iterable[Tile]] = iter,
        **arguments: Any,
    ) -> None:
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be at least 1, got {tile}")
        self.device = open_device(str(device))
        if not isinstance(model, nn.Module):
            model, checkpoint, more = choose_network(model, checkpoint, scale)
            arguments |= more
        found = open_or_take(model, {"checkpoint": checkpoint, "random_weights": random_weights, **arguments})
        if not is_super_resolution(found.network):
            raise ValueError(f"model must be a network for super-resolution, got {found.name!r}, which is a classifier")
        if scale not in (None, found.network.scale):
            raise ValueError(f"scale must be that of {found.name}, {found.network.scale}, got {scale}")
        self.name = found.name
        network: Any = found.network
        self.scale: int = network.scale
        self.radius: int = network.radius
        self.model: Any = for_inference(found.network, self.device, fuse)
        self.tile = tile
        self.self_ensemble = self_ensemble
        self.progress = progress

    def __repr__(self) -> str:
        return f"Upscaler({self.name!r}, scale={self.scale}, device={str(self.device)!r})"

    @overload
    def __call__(self, images: str | os.PathLike[str] | Image.Image) -> Image.Image: ...

    @overload
    def __call__(self, images: np.ndarray) -> np.ndarray: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Tensor) -> Tensor: ...

    @overload
    def __call__(self, images: Iterable[Any]) -> list[Any]: ...

    def __call__(self, images: ImageLike | Iterable[Any]) -> Any:
        """Larger images.

        Args:
            images: One image or several, as :class:`Classifier` takes them; a folder in a list is all images under it,
                as frames are: in the order of their numbers.

        Returns:
            The larger image, as it came; an array (N, scale * H, scale * W, C) or a tensor (N, C, scale * H, scale * W)
            of one with four dimensions, a list of other iterables.

        Raises:
            ValueError: naming the image, if one cannot be read or is not what is taken; if results are not finite.
        """
        if isinstance(images, str | os.PathLike) and not is_single(images):
            raise ValueError(f"images must be a file, got the folder {images}: [folder] is all images under it")
        larger = self.stream(images)
        if is_single(images):
            return next(larger)
        results = list(larger)
        if isinstance(images, np.ndarray | Tensor):
            if not results:
                raise ValueError(f"images must be some, got the shape {tuple(images.shape)}")
            return np.stack(results) if isinstance(images, np.ndarray) else torch.stack(results)
        return results

    def stream(self, images: ImageLike | Iterable[Any]) -> Iterator[Any]:
        """The same, one after the other, for frames without end: an image is read when it is asked for.

        Raises:
            ValueError: as above.
        """
        for each in each_input(images):
            yield _as_it_came(self._pixels(each.read()), each)

    def _pixels(self, pixels: Pixels) -> Pixels:
        color, alpha = (
            None if part is None else torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))
            for part in (pixels.color, pixels.alpha)
        )
        assert color is not None
        larger = self.photo(Photo(color, alpha))
        parts = [None if part is None else part.permute(1, 2, 0).numpy() for part in (larger.color, larger.alpha)]
        assert parts[0] is not None
        return Pixels(parts[0], parts[1])

    def photo(self, photo: Photo) -> Photo:
        """All frames of an image, larger, with what its file says besides."""
        frames = []
        for frame in photo.frames:
            color, alpha = frame.color, frame.alpha
            if alpha is not None:
                # As far as the network sees from where the larger alpha channel fades out.
                color = spread_colors(color, alpha, self.radius + 3)
                alpha = _of_type(BicubicUpsample(self.scale)(as_float(alpha)[None])[0], alpha.dtype)
            larger = self.color(color)
            if len(color) == 1:
                larger = _of_type(as_float(larger).mean(0, keepdim=True), larger.dtype)
            frames.append(replace(frame, color=larger, alpha=alpha))
        return replace(frames[0], others=tuple(frames[1:]))

    def color(self, color: Tensor) -> Tensor:
        """A larger image, (3, scale * H, scale * W), of one with 1 or 3 channels: uint8, uint16 or float in [0, 1]."""
        larger = upscale(
            self.model,
            color.expand(3, -1, -1),
            self.tile,
            self.self_ensemble,
            torch.channels_last,
            self.progress,
        )
        return _of_type(larger, color.dtype) if color.is_floating_point() else larger

    def write(self, source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> Upscaled:
        """Make an image file larger, with all that the format of the other one has a place for.

        That is 16 bits (PNG, TIFF), alpha, EXIF, color profile and resolution, all frames of an animation with their
        timing, all pages of a TIFF. EXIF orientation is applied.

        Args:
            source: The file, of a format that Pillow decodes.
            destination: File to write, in the format that its name ends in; it is replaced completely or not at all.

        Raises:
            ValueError: naming the file, if one cannot be read, or the other cannot hold the larger image.
            OSError: if it cannot be written.
        """
        source, destination = Path(source), Path(destination)
        photo = read_photo(source)
        check_photo(photo, destination, self.scale)
        larger = self.photo(photo)
        write_atomically(destination, partial(write_photo, larger))
        height, width = larger.color.shape[1:]
        frames, animation = len(written_frames(larger, destination)), larger.animation is not None
        lost = loses_bits(photo, destination)
        return Upscaled(str(source), str(destination), width, height, frames, animation, self.name, lost)


def choose_network(
    model: str | os.PathLike[str] | None, checkpoint: str | os.PathLike[str] | None, scale: int | None
) -> tuple[str | os.PathLike[str], str | os.PathLike[str] | None, dict[str, Any]]:
    """What to open: without a name what the checkpoint says, else the first that was measured at this scale, else at 2.

    Returns:
        Name or file, checkpoint, and arguments for :func:`adderzoo.checkpoints.open_network`.

    Raises:
        ValueError: if nothing was measured at this scale.
    """
    if model is None:
        model, checkpoint = (default_network(scale or 2), None) if checkpoint is None else (checkpoint, None)
    path = weights_in(Path(model if checkpoint is None else checkpoint))
    made = scale is None or (path.is_file() and is_quantized(path))  # integers of one scale
    return model, checkpoint, {} if made else {"scale": scale}


def default_network(scale: int) -> str:
    """The first adder network with published weights that were measured at a scale.

    Raises:
        ValueError: if there is none.
    """
    for info in networks("adder_*", pretrained=True):
        for weights in info.pretrained:
            measured = weights.measured
            if isinstance(measured, Quality) and scale in {test_set.scale for test_set in measured.test_sets}:
                return f"{info.name}.{weights.tag}"
    raise ValueError(
        f"no adder network has published weights that were measured at scale {scale}: name one as the "
        "model, and the file of its weights as the checkpoint"
    )


def _of_type(image: Tensor, dtype: torch.dtype) -> Tensor:
    """An image from [0, 1], clipped, as the one was that it was made of."""
    return image.clamp(0, 1).to(dtype) if dtype.is_floating_point else as_integers(image, dtype)


def _as_it_came(pixels: Pixels, image: Input) -> Any:
    """A larger image in the form of the one that it was made of."""
    value = image.value
    whole = pixels.color if pixels.alpha is None else np.concatenate([pixels.color, pixels.alpha], 2)
    if isinstance(value, Tensor):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(whole, -1, 0))).to(value.device, value.dtype)
    if isinstance(value, np.ndarray):
        whole = whole.astype(value.dtype, copy=False)
        return np.ascontiguousarray(whole if value.ndim == 3 else whole[..., 0])
    if whole.shape[2] > 1:
        whole = to_bytes(whole)
    return Image.fromarray(np.ascontiguousarray(whole[..., 0] if whole.shape[2] == 1 else whole))


# ---------------------------------------------------------------------------------------------------------- file names


def name_outputs(
    photos: Iterable[Path],
    output: Path | None = None,
    label: str = "x2",
    tell: Callable[[str], object] = lambda text: None,
) -> dict[Path, Path]:
    """Where the larger image of each file goes, in the format of the file, or as .png if that cannot be written.

    Args:
        photos: Files, and folders, which are all images under them.
        output: File for one file; else the folder for images of the same names. Files that are there are replaced. None
            for names beside the originals, which replace nothing: photo_x2.png of photo.png, folder_x2 of a folder.
        label: What stands in those names, such as "x2".
        tell: Takes lines about what is in the folders.

    Raises:
        ValueError: if there are no images, `output` is not what it has to be, or an image would replace an original,
            another image, or what is there and was not named.
        OSError: if a file cannot be written.
    """
    photos = list(photos)
    one = len(photos) == 1 and not photos[0].is_dir()
    if output is not None and one and not output.is_dir():
        check_file(photos[0])
        check_image_output(output, "OUT")
        return {photos[0]: output}
    if output is not None:
        if output.exists() and not output.is_dir():
            raise ValueError(f"OUT must be a folder for the larger images, got the file {output}")
        if not output.exists() and output.suffix:
            raise ValueError(f"OUT must be a folder for the larger images, got a name that ends as a file's, {output}")
    outputs: dict[Path, Path] = {}
    found = {photo: find_images([photo]) for photo in photos}
    for photo, files in found.items():
        for source in map(Path, files.images):
            if source in outputs:
                continue
            destination = _beside(photo, source, label) if output is None else output / _inside(photo, source)
            if not is_image_format(destination):
                destination = destination.with_suffix(".png")
            check_image_output(destination, "OUT")
            if output is None and destination.exists():
                where = destination if source == photo else _beside(photo, photo, label)
                raise ValueError(f"{destination} is there already, and is replaced by -o {where} alone")
            if destination in outputs.values():
                other = next(path for path, value in outputs.items() if value == destination)
                raise ValueError(f"{other} and {source} would both become {destination}")
            outputs[source] = destination
    originals = {source.resolve() for source in outputs}
    for destination in outputs.values():
        if destination.resolve() in originals:
            raise ValueError(f"OUT must be another folder than that of the images: {destination} is one of them")
    for photo, files in found.items():
        if photo.is_dir():
            tell(f"{photo}: {files.describe()}")
    return outputs


def _inside(photo: Path, source: Path) -> Path:
    """Where an image lies in the folder that was named, or its name if it was named itself."""
    return source.relative_to(photo) if photo.is_dir() else Path(source.name)


def _beside(photo: Path, source: Path, label: str) -> Path:
    """The same, behind the name for what was named, with a label in it."""
    if not photo.is_dir():
        return photo.with_name(f"{photo.stem}_{label}{photo.suffix}")
    folder = photo if photo.name not in ("", "..") else photo.resolve()
    if not folder.name:
        raise ValueError(f"OUT must be given for the folder {photo}, which has no name")
    return folder.with_name(f"{folder.name}_{label}") / source.relative_to(photo)
