"""Small real data that need no download, for the demo, the reproductions and tests."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits, load_sample_image


def write_digits(root: Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits (8x8, gray) as ROOT/{train,test}/CLASS/INDEX.png.

    The first half trains, the second, from other writers, is held out, as in scikit-learn's own example.
    """
    digits = load_digits()
    half = len(digits.images) // 2
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = root / ("train" if index < half else "test") / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(path)


def write_photos(root: Path) -> None:
    """Write scikit-learn's two photographs, 640x427, as ROOT/{china,flower}.png."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(root / f"{name}.png")
