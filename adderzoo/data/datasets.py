"""Data sets, opened through timm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.utils import natural_key
from torch.utils.data import Dataset, IterableDataset, Subset

from .folders import (
    TRAINING_SPLITS,
    VALIDATION_SPLITS,
    ClassFolder,
    count,
    find_split,
    read_class_map,
    some_of,
    split_folders,
    unusual_names,
)
from .pixels import image_mode, read_image

_KINDS = ("torch", "hfds", "hfids", "tfds", "wds")  # what timm opens
_FOLDERS = ("", "torch/folder", "torch/image_folder")  # by timm's names too


class Images(Dataset):
    """Images of a folder, or of a timm or torchvision data set, in one mode, for evaluation.

    An image that cannot be read is an error: timm would count the next one in its place.

    Args:
        source: Data set with access by index.
        mode: PIL's, such as "L" or "RGB".
        labels: Index of a class by the one that `source` gives it; None for the same.
    """

    def __init__(self, source: Any, mode: str, labels: Mapping[int, int] | None = None) -> None:
        self.source = source
        self.mode = mode
        self.labels = labels
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if isinstance(self.source, ClassFolder):
            path, label = self.source[index]
            image = read_image(Path(path), len(self.mode))
        elif isinstance(self.source, Subset):  # of images such as these, whose errors name them
            image, label = self.source[index]
        else:
            try:
                image, label = self._read(index)
            except Exception as error:  # a damaged file makes PIL raise nearly anything
                samples = getattr(self.source, "samples", None)  # of torchvision's folders, such as ImageNet
                which = samples[index][0] if samples else f"number {index}"
                raise ValueError(f"image {which} cannot be read: {error}") from error
        if self.labels is not None:
            label = self.labels[label]
        return image if self.transform is None else self.transform(image), label

    def _read(self, index: int) -> tuple[Image.Image, int]:
        """As the library that the data set is of reads it."""
        if not isinstance(self.source, ImageDataset):
            image, label = self.source[index]
            return image.convert(self.mode), label
        stream, label = self.source.reader[index]
        with stream, Image.open(stream) as image:
            return image.convert(self.mode), label


def open_dataset(
    name: str,
    root: str | None,
    split: str | None,
    channels: int,
    class_map: str = "",
    download: bool = False,
    option: str = "split",
    **keys: str,
) -> Any:
    """A data set for evaluation: a :class:`ClassFolder`, or through timm's `create_dataset`.

    Files of a folder are read as by :func:`read_image`; what the libraries of other data sets have, by their own and
    timm's loaders, which neither turn images upright nor know 16 bits and transparency.

    Args:
        name: "" for a folder of one folder a class; "torch/cifar10", "hfds/NAME", "wds/NAME" ... as timm takes them.
        root: Folder of the data.
        split: Such as "validation" or "test", the name of a folder in `root` (or timm's other names for the same); ""
            is `root` itself, as is any split of a folder without splits. None is "validation", or the first folder that
            is there of validation, val, valid, eval, evaluation and test.
        channels: Of the network's input, 1 or 3.
        class_map: File with the name of a class a line, in the order of their indices (:func:`read_class_map`).
        download: Let torchvision download what is missing.
        option: What the user names the split by, for messages.
        keys: `input_key` and `target_key`, the columns of a Hugging Face or webdataset data set.

    Raises:
        ValueError: if timm knows no such data set, the folder, the split or the images are missing, or `channels` is
            neither 1 nor 3; as :class:`ClassFolder` and :func:`read_class_map`; if `class_map` or `keys` mean nothing
            to the data set.
    """
    mode = image_mode(channels)
    folder, kind = name.lower() in _FOLDERS, name.partition("/")[0].lower()
    if not folder and kind not in _KINDS:  # timm would read it as a folder
        raise ValueError(f"dataset must begin with {', '.join(f'{kind}/' for kind in _KINDS)}, got {name!r}")
    if folder and (root is None or not Path(root).is_dir()):
        raise ValueError(f"data-dir must be a folder, got {root!r}")
    if keys and (folder or kind == "torch"):
        raise ValueError(f"{next(iter(keys)).replace('_', '-')} is for hfds/ and wds/ data sets, which have columns")
    indices = read_class_map(class_map) if class_map else None
    if folder:
        at = find_split(Path(str(root)), split, VALIDATION_SPLITS, option)
        return Images(ClassFolder(at or str(root), indices), mode)
    try:
        dataset = create_dataset(
            name,
            root=root,
            split="validation" if split is None else split,
            class_map=None if kind == "torch" else indices,  # it would not look at it
            download=download,
            input_img_mode=mode,
            **keys,
        )
    except (AssertionError, ImportError, LookupError, RuntimeError, TypeError) as error:  # timm has no error of its own
        raise ValueError(f"dataset {name!r} in data-dir {root!r} cannot be read: {error}") from error
    if isinstance(dataset, IterableDataset):
        return dataset
    images = Images(dataset, mode)
    if not indices or kind != "torch":
        return images
    strange = [label for label in class_names(images) if label not in indices]
    if strange:
        raise ValueError(f"class-map must name the classes of {name}, it does not have {some_of(strange)}")
    return with_indices(images, indices)


def spread(dataset: Images, number: int) -> Images:
    """So many images of a data set, or all that it has, evenly spaced: a folder is sorted by class."""
    number = min(number, len(dataset))
    return Images(Subset(dataset, [index * len(dataset) // number for index in range(number)]), dataset.mode)


def open_training_data(
    name: str,
    root: str | None,
    train_split: str,
    val_split: str | None,
    channels: int,
    class_map: str = "",
    download: bool = False,
    known: Sequence[str] | None = None,
    **keys: str,
) -> tuple[Any, Any]:
    """Training and validation images, with the same class indices; None for validation images that are not there.

    Args:
        name: As for :func:`open_dataset`.
        root: Folder of the data.
        train_split: Such as "train"; as for :func:`open_dataset`.
        val_split: Such as "validation"; "" for none. None is "validation", or the first folder that is there of
            validation, val, valid, eval, evaluation and test, or none.
        channels: Of the network's input.
        class_map: As for :func:`open_dataset`.
        download: Let torchvision download what is missing.
        known: Names of the classes of a network that is trained on, in its order, which is taken if they are those of
            the images.
        keys: As for :func:`open_dataset`.

    Raises:
        ValueError: as :func:`open_dataset`; if the data set is a stream, if there are fewer than two classes, if the
            validation images have other classes, or are in a folder that is spelled in another way.
    """
    train = open_dataset(name, root, train_split, channels, class_map, download, "train-split", **keys)
    if isinstance(train, IterableDataset):
        raise ValueError(f"dataset {name!r} is a stream; training needs access by index")
    empty = train.source.empty if is_folder(train) else []
    classes = [name for name in class_names(train) if name not in empty]
    if len(classes) == 1:
        text = f"training needs at least two classes, data-dir {root!r} has images of one: {classes[0]!r}"
        raise ValueError(f"{text}; each needs a folder of its own{_hint(train)}")
    indices = class_indices(train)
    if known and not class_map and sorted(known) == sorted(indices):
        indices = {label: index for index, label in enumerate(known)}
        train = with_indices(train, indices)
    if val_split is None and is_folder(train):
        val_split = _find_validation(Path(str(root)), Path(train.source.root))
    elif val_split is None:
        val_split = "validation"
    if not val_split:
        return train, None
    val = open_dataset(name, root, val_split, channels, class_map, download, "val-split", **keys)
    unknown = [label for label in class_names(val) if label not in indices]
    if indices and unknown:
        raise ValueError(
            "the validation images have classes that the training images do not have: "
            f"{some_of([repr(label) for label in unknown])}; --val-split names another folder, or '' for none"
        )
    return train, with_indices(val, indices)


def _find_validation(root: Path, train: Path) -> str:
    """The folder of the validation images by its usual names; "" for none."""
    if train == root:  # which has the classes, and all images train
        return ""
    others = [name for name in split_folders(root) if name not in (*TRAINING_SPLITS, train.name)]
    found = next((name for name in VALIDATION_SPLITS if name in others), "")
    if others and not found:
        raise unusual_names(root, others)
    return found


# -------------------------------------------------------------------------------------------------------------- classes


def _hint(dataset: Any) -> str:
    """What to try with a folder that has another one around its class folders, as archives have."""
    inner = dataset.source.inner if is_folder(dataset) else ""
    return f"; if the classes are the folders in it, --data-dir {inner} takes them" if inner else ""


def is_folder(dataset: Any) -> bool:
    """Whether a data set is a folder with a folder a class."""
    return isinstance(getattr(dataset, "source", None), ClassFolder)


def class_names(dataset: Any) -> list[str]:
    """The names of the classes that a data set has, as far as it says."""
    source = getattr(dataset, "source", dataset)
    return source.classes if isinstance(source, ClassFolder) else [*class_indices(dataset)]


def class_indices(dataset: Any) -> dict[str, int]:
    """The index of each class by its name, as far as a data set says; with those of a class map that it has not."""
    source = getattr(dataset, "source", dataset)
    reader = getattr(source, "reader", None)
    # torchvision's ImageNet has words for classes too.
    names = ((source, "wnid_to_idx"), (source, "class_to_idx"), (reader, "class_to_idx"))
    indices = dict(next(filter(None, (getattr(owner, name, None) for owner, name in names)), {}))
    labels = getattr(dataset, "labels", None)
    return indices if labels is None else {name: labels[index] for name, index in indices.items()}


def with_indices(dataset: Any, indices: Mapping[str, int]) -> Any:
    """A data set with other indices of its classes, such as those of a data set with more of them.

    Raises:
        ValueError: if it has other indices and is a stream.
    """
    own = class_indices(dataset)
    if not own or not indices or own == indices:
        return dataset
    if not isinstance(dataset, Images):
        raise ValueError("the classes of the stream have other indices, which cannot be changed")
    if is_folder(dataset):
        return Images(dataset.source.with_indices(indices), dataset.mode)
    new = {index: indices[name] for name, index in own.items()}
    labels = new if dataset.labels is None else {old: new[label] for old, label in dataset.labels.items()}
    return Images(dataset.source, dataset.mode, labels)


def match_classes(dataset: Any, num_classes: int, known: Sequence[str] | None) -> Any:
    """A data set with the indices that a network has for its classes: by their names, else by their order.

    "3" and "three" are names of the class that torchvision's MNIST calls "3 - three".

    Args:
        dataset: As :func:`open_dataset` gives it, without class map; one that does not name its classes stays as it is.
        num_classes: Of the network.
        known: The names of the network's classes in their order; None if nobody knows.

    Raises:
        ValueError: if a class is none of `known`; if nothing is known, and there are more classes than the network has,
            or fewer.
    """
    names = class_names(dataset)
    if not names:
        return dataset
    if known is None:
        check_classes(dataset, num_classes)
        if len(names) < num_classes:
            raise ValueError(
                f"the data set has {count(len(names), 'class')} ({some_of(names)}), the network {num_classes}, and "
                "nothing says which these are: --class-map takes a file with the network's classes, a name a line"
                f"{_hint(dataset)}"
            )
        return dataset
    indices = match_names(names, known)
    strange = [name for name in names if name not in indices]
    if strange:
        raise ValueError(
            f"the data set has {count(len(strange), 'class')} that the network was not trained on ({some_of(strange)}; "
            f"it knows {some_of(known)}): --class-map takes a file with the data set's names of the network's classes, "
            f"a name a line, if they are the same; `adderzoo train` teaches it others{_hint(dataset)}"
        )
    others = {name: index for index, name in enumerate(known) if index not in indices.values()}
    return with_indices(dataset, indices | others)


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """The index in `known` of each name that is there, itself or as a part of one such as "3 - three"."""
    indices = {name: index for index, name in enumerate(known)}
    parts: dict[str, set[int]] = {}
    for name, index in indices.items():
        for part in name.split(" - "):
            parts.setdefault(part, set()).add(index)
    found = {}
    for name in names:
        among = set.union(*(parts.get(part, set()) for part in name.split(" - ")))
        if name in indices:
            found[name] = indices[name]
        elif len(among) == 1:
            found[name] = among.pop()
    return found


def check_classes(dataset: Any, num_classes: int) -> None:
    """Refuse a data set with more classes, or greater indices, than a network has.

    Raises:
        ValueError: naming both numbers.
    """
    names, indices = class_names(dataset), class_indices(dataset)
    if len(names) > num_classes:
        raise ValueError(f"the data set has {count(len(names), 'class')}, the network {num_classes}")
    beyond = [name for name in names if indices[name] >= num_classes]
    if beyond:
        raise ValueError(
            f"class-map must have at most {num_classes} lines, the network's classes, got {some_of(beyond[:1])} "
            f"on line {indices[beyond[0]] + 1}"
        )


def describe_order(dataset: Any) -> str:
    """By what the classes have their indices, where nothing but the data set says so."""
    names = class_names(dataset)
    if not is_folder(dataset):
        return "in its own order"
    if sorted(names, key=natural_key) == names:
        return "in sorted order"
    # timm, which many networks are trained with, has another order.
    return f"in the order of text, {some_of(names)} (--class-map gives another)"


def describe_dataset(dataset: Any, name: str = "", order: str = "") -> str:
    """What there is: how many classes and images, where, what is left out and why.

    Args:
        dataset: As :func:`open_dataset` gives it.
        name: That of a data set which is no folder.
        order: By what the classes have their indices.
    """
    names = class_names(dataset)
    classes = f"{count(len(names), 'class')} {order}".rstrip() + ", " if names else ""
    images = "a stream of images" if isinstance(dataset, IterableDataset) else count(len(dataset), "image")
    return f"{classes}{images} in {describe_origin(dataset, name)}"


def describe_origin(dataset: Any, name: str = "") -> str:
    """Where the images are, and what a person has to know of a folder: what is left out, classes without images."""
    source = getattr(dataset, "source", dataset)
    return "; ".join([source.root, *source.notes()]) if isinstance(source, ClassFolder) else name
