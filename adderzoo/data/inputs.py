"""Images as a program has them: files, PIL images, arrays, tensors, and any number of these."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from .folders import find_images
from .pixels import Pixels, open_image, read_pixels

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_CHANNELS = {1: "gray", 2: "gray and alpha", 3: "RGB", 4: "RGB and alpha"}
_INTEGERS = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True)
class Input:
    """One image, which is not read yet.

    Attributes:
        value: A path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W).
        name: What it is called in messages: its path, or where it was given.
    """

    value: Path | Image.Image | np.ndarray | Tensor
    name: str

    @property
    def path(self) -> str | None:
        """Of the file, where it is one."""
        return str(self.value) if isinstance(self.value, Path) else None

    def read(self) -> Pixels:
        """Its pixels, upright; see :func:`adderzoo.data.pixels.read_pixels`.

        Raises:
            ValueError: naming the image, if it cannot be read, or its values are none of what is taken.
        """
        if isinstance(self.value, Path):
            with open_image(self.value) as image:
                return read_pixels(image)
        if isinstance(self.value, Image.Image):
            try:
                return read_pixels(self.value)
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes Pillow raise nearly anything
                raise ValueError(f"{self.name} cannot be read: {error or type(error).__name__}") from error
        return _split(_to_array(self.value, self.name))


def is_single(images: Any) -> bool:
    """Whether it is one image: a file, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W)."""
    if isinstance(images, str | os.PathLike):
        return not Path(images).is_dir()
    return isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4)


def each_input(images: Any, channels: int = 3, name: str = "images") -> Iterator[Input]:
    """The images one by one, in order.

    Args:
        images: An image (see :func:`is_single`), a folder, which is all images under it, an array (N, H, W, C), a
            tensor (N, C, H, W), or an iterable of all of these, which is read no further than it is asked to.
        channels: Of the input of the network that they are for.
        name: The argument's, for messages.

    Raises:
        ValueError: naming the image, if there is none at a path, or its shape or type is none of these, or may mean
            another one.
    """
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        yield from (Input(Path(file), file) for file in find_images([path]).images)
    elif isinstance(images, Image.Image):
        yield Input(images, name)
    elif isinstance(images, np.ndarray | Tensor):
        check_shape(images, channels, name)
        if images.ndim < 4:
            yield Input(images, name)
        else:
            yield from (Input(image, f"{name}[{index}]") for index, image in enumerate(images))
    elif isinstance(images, Iterable) and not isinstance(images, Mapping | bytes | bytearray | memoryview):
        for index, image in enumerate(images):
            yield from each_input(image, channels, f"{name}[{index}]")
    else:
        raise ValueError(
            f"{name} must be a path, a PIL image, an array, a tensor, or several of these, got {type(images).__name__}"
        )


def check_shape(image: np.ndarray | Tensor, channels: int = 3, name: str = "image") -> None:
    """Refuse an array or a tensor of which it is not known what is a channel.

    Args:
        image: An array (H, W), (H, W, C) or (N, H, W, C), or a tensor (C, H, W) or (N, C, H, W).
        channels: Of the input of the network that it is for.
        name: What it is called in the message.

    Raises:
        ValueError: naming its shape, if it has another, no pixels, or could be of another layout as well: the four
            dimensions of several images say which.
    """
    shape = tuple(image.shape)
    kind, taken = (
        ("tensor", "(C, H, W) or (N, C, H, W)")
        if isinstance(image, Tensor)
        else ("array", "(H, W), (H, W, C) or (N, H, W, C)")
    )
    wanted = f"{name} must be {'a' if kind == 'tensor' else 'an'} {kind} {taken}, with 1 to 4 channels, got {shape}"
    if image.ndim not in ((3, 4) if kind == "tensor" else (2, 3, 4)):
        raise ValueError(wanted)
    first, last = (shape[-3], shape[-1]) if image.ndim > 2 else (1, 1)
    own, other = (first, last) if kind == "tensor" else (last, first)
    if own not in _CHANNELS:
        remedy = ""
        if other in _CHANNELS:
            remedy = "; .movedim(-1, -3)" if kind == "tensor" else "; numpy.moveaxis(..., -3, -1)"
            remedy += f" makes one of what has its channels {'last' if kind == 'tensor' else 'first'}"
        elif image.ndim == 3:
            remedy = f"; of gray images, list(images) or {'(N, 1, H, W)' if kind == 'tensor' else '(N, H, W, 1)'}"
        raise ValueError(wanted + remedy)
    if 0 in shape[-3:]:
        raise ValueError(f"{name} must have pixels, got {shape}")
    if image.ndim != 3:
        return
    several = "(1, C, H, W)" if kind == "tensor" else "(1, H, W, C)"
    if other in _CHANNELS:
        raise ValueError(
            f"{name} of shape {shape} may have its channels first or last: {several} says that they are "
            f"{'first' if kind == 'tensor' else 'last'}"
        )
    if kind == "tensor" and channels == 1 and own > 1:
        raise ValueError(
            f"{name} of shape {shape} may be one image of {own} channels or {own} gray ones: {several} is one, "
            "(N, 1, H, W) are several"
        )


def _to_array(image: np.ndarray | Tensor, name: str) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32.

    Raises:
        ValueError: if its type is another one, or a float value is not in [0, 1].
    """
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).movedim(0, -1).numpy()
    else:
        array = image if image.ndim == 3 else image[..., None]
    if array.dtype.name in _INTEGERS:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} must be uint8, uint16 or float in [0, 1], got {array.dtype}")
    array = np.ascontiguousarray(array, np.float32)
    least, most = float(array.min()), float(array.max())
    if not (least >= 0 and most <= 1):  # NaN is neither
        raise ValueError(f"{name} must be in [0, 1], from black to white, where it is float: got {least:g} to {most:g}")
    return array


def _split(array: np.ndarray) -> Pixels:
    colors = 1 if array.shape[2] < 3 else 3
    return Pixels(array[..., :colors], array[..., colors:] if array.shape[2] > colors else None)
