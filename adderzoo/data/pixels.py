"""Pixels of image files, for every command."""

from pathlib import Path

from PIL import ExifTags, Image, ImageOps

_MODES = {1: "L", 3: "RGB"}


def image_mode(channels: int) -> str:
    """PIL's mode of images for a network with so many input channels.

    Raises:
        ValueError: if they are neither 1 nor 3.
    """
    if channels not in _MODES:
        raise ValueError(f"the network's input must have 1 or 3 channels to be fed with images, got {channels}")
    return _MODES[channels]


def read_image(path: Path, channels: int) -> Image.Image:
    """An image for a network with 1 or 3 input channels, turned upright if its EXIF orientation says so.

    Raises:
        ValueError: naming the file, if it cannot be read; or if `channels` is neither 1 nor 3.
    """
    mode = image_mode(channels)
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    except Exception as error:  # a damaged file makes PIL raise nearly anything
        raise ValueError(f"image {path} cannot be read: {error}") from error


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` gives it, of which the header alone is read.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as above
        raise ValueError(f"image {path} cannot be read: {error}") from error
