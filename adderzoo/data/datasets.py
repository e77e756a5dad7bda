"""Data sets, opened through timm, and one small real data set that needs no download."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils import natural_key
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets.folder import IMG_EXTENSIONS

from .pixels import image_mode, read_image

# Names of the folder of validation images, the first that is there.
VALIDATION_SPLITS = ("validation", "val", "valid", "eval", "evaluation", "test")

_KINDS = ("torch", "hfds", "hfids", "tfds", "wds")  # what timm opens beside folders


class Images(Dataset):
    """Images of a timm or torchvision data set in one mode, for evaluation.

    An image that cannot be read is an error: timm would count the next one in its place.

    Args:
        source: Data set with access by index.
        mode: PIL's, such as "L" or "RGB".
    """

    def __init__(self, source: Any, mode: str) -> None:
        self.source = source
        self.mode = mode
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        reader = getattr(self.source, "reader", None)
        if isinstance(reader, ReaderImageFolder):
            path, label = reader.samples[index]
            image = read_image(Path(path), len(self.mode))
        else:
            try:
                image, label = self._read(index)
            except Exception as error:  # a damaged file makes PIL raise nearly anything
                raise ValueError(f"image {self._name(index)} cannot be read: {error}") from error
        return image if self.transform is None else self.transform(image), label

    def _read(self, index: int) -> tuple[Image.Image, int]:
        """As the library that the data set is of reads it."""
        if not isinstance(self.source, ImageDataset):
            image, label = self.source[index]
            return image.convert(self.mode), label
        stream, label = self.source.reader[index]
        with stream, Image.open(stream) as image:
            return image.convert(self.mode), label

    def _name(self, index: int) -> str:
        samples = getattr(getattr(self.source, "reader", self.source), "samples", None)  # of a folder
        return samples[index][0] if samples else f"number {index}"


def open_dataset(
    name: str,
    root: str | None,
    split: str,
    channels: int,
    class_map: str = "",
    download: bool = False,
    **keys: str,
) -> Any:
    """A data set for evaluation, through timm's `create_dataset`.

    Files of a folder are read as by :func:`read_image`; what the libraries of other data sets have, by their own and
    timm's loaders, which neither turn images upright nor know 16 bits and transparency.

    Args:
        name: "" for a folder of one folder a class; "torch/cifar10", "hfds/NAME", "wds/NAME" ... as timm takes them.
        root: Folder of the data.
        split: Such as "validation" or "test".
        channels: Of the network's input, 1 or 3.
        class_map: File that maps class names to indices.
        download: Let torchvision download what is missing.
        keys: `input_key` and `target_key`, the columns of a Hugging Face or webdataset data set.

    Raises:
        ValueError: if timm knows no such data set, the folder, the split or the images are missing, or `channels` is
            neither 1 nor 3.
    """
    mode = image_mode(channels)
    if name and name.partition("/")[0].lower() not in _KINDS:  # timm would read it as a folder
        raise ValueError(f"dataset must begin with {', '.join(f'{kind}/' for kind in _KINDS)}, got {name!r}")
    if "/" not in name and (root is None or not Path(root).is_dir()):
        raise ValueError(f"data-dir must be a folder, got {root!r}")
    if not name:
        _check_split(Path(str(root)), split)
    try:
        dataset = create_dataset(
            name,
            root=root,
            split=split,
            class_map=class_map or None,
            download=download,
            input_img_mode=mode,
            **keys,
        )
    except (AssertionError, ImportError, LookupError, RuntimeError, TypeError) as error:  # timm has no error of its own
        raise ValueError(f"dataset {name!r} in data-dir {root!r} cannot be read: {error}") from error
    if isinstance(dataset, IterableDataset):
        return dataset
    if not name and not class_map:
        dataset = _with_empty_classes(dataset)
    return Images(dataset, mode)


def spread(dataset: Images, count: int) -> Images:
    """So many images of a data set, or all that it has, evenly spaced: a folder is sorted by class."""
    count = min(count, len(dataset))
    return Images(Subset(dataset, [index * len(dataset) // count for index in range(count)]), dataset.mode)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as they are given, and in the place of a folder all images under it, hidden ones left out.

    Raises:
        ValueError: naming the path, if there is no such file, or no image in a folder.
    """
    images = []
    for path in paths:
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS and file.is_file())
            visible = [file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts)]
            if not visible:
                raise ValueError(f"folder {path} has no images")
            images += sorted(visible, key=lambda file: natural_key(str(file)))
        elif path.exists():
            images.append(path)
        else:
            raise ValueError(f"image {path} does not exist")
    return images


def _with_empty_classes(dataset: ImageDataset) -> ImageDataset:
    """Count class folders without images too: timm would shift the indices behind them."""
    root, known = Path(dataset.reader.root), dataset.reader.class_to_idx
    others = [path for path in root.iterdir() if path.is_dir() and path.name not in known and path.name[0] != "."]
    empty = [path.name for path in others if not any(path.iterdir())]
    if not empty:
        return dataset
    class_map = {label: index for index, label in enumerate(sorted({*known, *empty}, key=natural_key))}
    return create_dataset("", root=str(root), search_split=False, class_map=class_map)


def _check_split(root: Path, split: str) -> None:
    """Refuse a folder with folders for other splits: timm would take their images together."""
    synonyms = ["validation", "val", "valid", "eval", "evaluation"]
    wanted = synonyms if split in synonyms else [split]
    if any((root / name).exists() for name in wanted):
        return
    # A class may be called "train" (CIFAR-100 has one), but has no folders inside.
    folders = [root / name for name in ("train", "test", *synonyms) if (root / name).is_dir()]
    parts = [folder.name for folder in folders if any(path.is_dir() for path in folder.iterdir())]
    if parts:
        raise ValueError(f"data-dir {str(root)!r} has no folder for the split {split!r}, but has: {', '.join(parts)}")


def open_training_data(
    name: str,
    root: str | None,
    train_split: str,
    val_split: str | None,
    channels: int,
    download: bool = False,
    **keys: str,
) -> tuple[Any, Any]:
    """Training and validation images, with the same class indices; None for validation images that are not there.

    Args:
        name: As for :func:`open_dataset`.
        root: Folder of the data.
        train_split: Such as "train".
        val_split: Such as "validation"; "" for none. None is "validation", or the first folder that is there of
            validation, val, valid, eval, evaluation and test, or none.
        channels: Of the network's input.
        download: Let torchvision download what is missing.
        keys: As for :func:`open_dataset`.

    Raises:
        ValueError: as :func:`open_dataset`; if the data set is a stream, if there are fewer than two classes, or if the
            validation images have other classes.
    """
    train = open_dataset(name, root, train_split, channels, download=download, **keys)
    if isinstance(train, IterableDataset):
        raise ValueError(f"dataset {name!r} is a stream; training needs access by index")
    indices = class_indices(train)
    if len(indices) == 1:
        raise ValueError(f"training needs at least two classes, data-dir {root!r} has one: {next(iter(indices))!r}")
    if val_split is None:
        val_split = "validation" if name else _find_validation(Path(str(root)), train_split)
    if not val_split:
        return train, None
    val = open_dataset(name, root, val_split, channels, download=download, **keys)
    unknown = class_indices(val).keys() - indices.keys()
    if indices and unknown:
        names = ", ".join(sorted(map(repr, unknown))[:4]) + (", ..." if len(unknown) > 4 else "")
        raise ValueError(f"the validation images have classes that the training images do not have: {names}")
    return train, with_indices(val, indices)


def _find_validation(root: Path, train_split: str) -> str | None:
    # Without a folder for the training images, `root` has the classes, and all images train.
    names = VALIDATION_SPLITS if (root / train_split).is_dir() else ()
    return next((name for name in names if (root / name).is_dir()), None)


def class_indices(dataset: Any) -> dict[str, int]:
    """The index of each class by its name, as far as a data set says."""
    source = getattr(dataset, "source", dataset)
    reader = getattr(source, "reader", None)
    return dict(getattr(source, "class_to_idx", None) or getattr(reader, "class_to_idx", None) or {})


def with_indices(dataset: Any, indices: dict[str, int]) -> Any:
    """A data set with the class indices of another: a folder without images of a class would shift those behind it.

    Raises:
        ValueError: if it has other indices and is no folder, which could be read again.
    """
    own = class_indices(dataset)
    if own == indices or not own or not indices:
        return dataset
    source = getattr(dataset, "source", dataset)
    if not isinstance(source, ImageDataset) or not hasattr(source.reader, "root"):
        raise ValueError("the classes of the data sets have different indices")
    return Images(create_dataset("", root=str(source.reader.root), search_split=False, class_map=indices), dataset.mode)


def check_classes(dataset: Any, model: Any) -> None:
    """Refuse a data set with more classes than the network tells apart.

    Raises:
        ValueError: naming both numbers.
    """
    source = getattr(dataset, "source", dataset)
    classes = getattr(source, "classes", None) or getattr(getattr(source, "reader", None), "class_to_idx", None)
    if classes and len(classes) > model.num_classes:
        raise ValueError(f"the data set has {len(classes)} classes, the network {model.num_classes}")


def write_digits(root: Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits (8x8, grey) as ROOT/{train,test}/CLASS/INDEX.png.

    The first half trains, the second, from other writers, is held out, as in scikit-learn's own example.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    half = len(digits.images) // 2
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = root / ("train" if index < half else "test") / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(path)


def write_photos(root: Path) -> None:
    """Write scikit-learn's two photographs, 640x427, as ROOT/{china,flower}.png."""
    from sklearn.datasets import load_sample_image

    root.mkdir(parents=True, exist_ok=True)
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(root / f"{name}.png")
