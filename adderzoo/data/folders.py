"""Folders of images: which files are images, of which class, and what is left out."""

import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image
from timm.utils import natural_key
from torch.utils.data import Dataset

# Names of the folder of a split, the first that is there.
TRAINING_SPLITS = ("train", "training")
VALIDATION_SPLITS = ("validation", "val", "valid", "eval", "evaluation", "test")
_SYNONYMS = (TRAINING_SPLITS, VALIDATION_SPLITS[:-1])

# What a folder of a split may be called, so that its name is no class's: Train, test_set, val2017 ...
_SPLIT = re.compile(
    r"(train(ing)?|val(id(ation)?)?|eval(uation)?|dev|test(ing)?)[ _-]?(s|sets?|data|split|images|imgs)?[ _-]?\d*", re.I
)

# Folders that operating systems leave behind: copies of file attributes, previews, what was thrown away.
_SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}

# What Pillow knows by name but cannot decode by itself (videos, tables), or hands to another program (PostScript).
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

_KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


@cache
def image_extensions() -> frozenset[str]:
    """The ends of file names that Pillow opens as images, in lower case."""
    formats = image_formats()
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in formats)


def image_formats() -> list[str]:
    """Pillow's names of the formats that it decodes by itself."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in _NO_IMAGES]


def check_file(path: Path | str) -> None:
    """Refuse what is no regular file: opening a FIFO would wait for ever, and a device has no end.

    Raises:
        ValueError: naming the path and what it is.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"image {path} does not exist") from error
    except OSError as error:  # a link to itself, a folder that may not be looked into
        raise ValueError(f"image {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"image {path} must be a file, got a {_KINDS.get(stat.S_IFMT(mode), 'special file')}")


@dataclass
class Files:
    """Image files of a folder.

    Attributes:
        images: Their paths.
        folders: Names of the folders right inside it, sorted.
        left_out: Paths of other files, by the reason why they do not count.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, *paths: str) -> None:
        if paths:
            self.left_out.setdefault(reason, []).extend(paths)

    def describe(self) -> str:
        """How many images there are, and how many files do not count and why."""
        return "; ".join(filter(None, (count(len(self.images), "image"), describe_left_out(self.left_out))))


def list_files(root: Path | str) -> Files:
    """The image files under a folder, at any depth, sorted folder by folder.

    An image is what is named as one of Pillow's formats (:func:`image_extensions`). Hidden names are skipped, and what
    is no regular file is never opened. Links are followed, but no folder is read twice, and none that the folder with
    the link, or `root`, lies in.

    Raises:
        OSError: if a folder cannot be read.
    """
    top = os.fspath(Path(root))
    home = os.path.realpath(top)
    files, seen = Files(), {home}
    folders = [(top, home)]  # each with its real path
    links: deque[tuple[str, str, str]] = deque()  # each with its target, and where it lies: read behind all folders
    while folders or links:
        if folders:
            path, real = folders.pop()
        else:
            path, real, place = links.popleft()
            if any(os.path.commonpath([real, other]) == real for other in (home, place)):
                files.leave_out("by a link to a parent folder", path)
                continue
            if real in seen:
                files.leave_out("by a link to a folder that is read already", path)
                continue
            seen.add(real)
        if os.path.dirname(path) == top != path:
            files.folders.append(os.path.basename(path))
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            kind = _kind(entry)
            if is_hidden(entry.name):
                inside = _all_files(entry.path) if kind == "folder" and not entry.is_symlink() else [entry.path]
                files.leave_out("hidden", *inside)
            elif kind == "folder" and entry.is_symlink():
                links.append((entry.path, os.path.realpath(entry.path), real))
            elif kind == "folder":
                inner = os.path.join(real, entry.name)
                if inner not in seen:
                    seen.add(inner)
                    folders.append((entry.path, inner))
            elif kind:
                files.leave_out(kind, entry.path)
            elif os.path.splitext(entry.name)[1].lower() in image_extensions():
                files.images.append(entry.path)
            else:
                files.leave_out("of no format that Pillow opens", entry.path)
    files.folders.sort()
    files.images.sort(key=lambda image: image.split(os.sep))
    return files


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry of a folder is, behind links; "" for a regular file."""
    try:
        if entry.is_file():
            return ""
        if entry.is_dir():
            return "folder"
        return _KINDS.get(stat.S_IFMT(entry.stat().st_mode), "special file")
    except OSError:  # no target, a ring of links
        return "by a broken link"


def _all_files(folder: str) -> list[str]:
    return [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]


def describe_left_out(left_out: Mapping[str, Sequence[str]]) -> str:
    """How many files do not count, and why, with an example of each; nothing if all count."""
    if not left_out:
        return ""
    total = sum(map(len, left_out.values()))
    reasons = (f"{len(paths):,} {reason} ({some_of(paths, most=1)})" for reason, paths in left_out.items())
    return f"{count(total, 'file')} left out: {', '.join(reasons)}"


def count(number: int, noun: str) -> str:
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def some_of(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, which may have any characters."""
    shown = (name if name.isprintable() else repr(name) for name in names[:most])
    return ", ".join(shown) + (", ..." if len(names) > most else "")


def find_images(paths: Iterable[Path | str]) -> Files:
    """Files as they are given, and in the place of a folder all images under it (:func:`list_files`), as people count.

    Raises:
        ValueError: naming the path, if there is no such file, it is no regular one, or a folder has no image.
    """
    found = Files()
    for path in map(Path, paths):
        if not path.is_dir():
            check_file(path)
            found.images.append(str(path))
            continue
        inside = list_files(path)
        if not inside.images:
            reasons = describe_left_out(inside.left_out)
            raise ValueError(f"folder {path} has no images" + (f"; {reasons}" if reasons else ""))
        found.images += sorted(inside.images, key=natural_key)
        for reason, files in inside.left_out.items():
            found.leave_out(reason, *files)
    return found


# -------------------------------------------------------------------------------------------------------------- classes


class ClassFolder(Dataset):
    """Image files in folders by class, ROOT/CLASS/IMAGE or ROOT/CLASS/.../IMAGE, as torchvision's ImageFolder has them.

    A class is a folder right inside `root`, with images or without, and their order is that of Python's `sorted`: "10"
    before "2". :func:`list_files` says which files are images.

    An item is the path of an image and the index of its class.

    Args:
        root: The folder.
        class_to_idx: Index of each class by its name; what it does not name is left out. Without it, the order counts.

    Attributes:
        classes: Names of the class folders, sorted.
        class_to_idx: Index of each class by its name.
        samples: Path and index of each image, sorted by class.
        left_out: Paths of files that do not count, by the reason.

    Raises:
        ValueError: if there are no class folders, no images in them, or images beside them; without `class_to_idx`, if
            there are splits inside the class folders.
    """

    def __init__(self, root: Path | str, class_to_idx: Mapping[str, int] | None = None) -> None:
        self.root = os.fspath(Path(root))
        files = list_files(root)
        named = [(path, self._class(path)) for path in files.images]
        loose = [path for path, name in named if name is None]
        if loose:
            beside = "beside the class folders: move them away, or" if files.folders else "of no class: move them"
            raise ValueError(
                f"folder {root} has {count(len(loose), 'image')} {beside} into folders of their classes, "
                f"{os.path.join(root, 'CLASS', 'IMAGE')}; got {some_of(loose, most=2)}"
            )
        if not files.images:
            what = "images in its class folders" if files.folders else "class folders"
            text = f"folder {root} has no {what}: there must be {os.path.join(root, 'CLASS', 'IMAGE')}"
            raise ValueError("; ".join(filter(None, (text, describe_left_out(files.left_out)))))
        self.left_out = files.left_out
        self.classes = files.folders
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        if class_to_idx is None:
            self._check_splits(files.images)
        else:
            self.class_to_idx = dict(class_to_idx)
            strange = [path for path, name in named if name not in class_to_idx]
            files.leave_out("of classes that class-map does not name", *strange)
            self.classes = [name for name in self.classes if name in class_to_idx]
            if len(strange) == len(named):
                raise ValueError(f"class-map must name the classes in {root}, {some_of(files.folders)}; it names none")
        self.samples = [(path, self.class_to_idx[name]) for path, name in named if name in self.class_to_idx]

    def _parts(self, path: str) -> list[str]:
        return path.removeprefix(self.root).lstrip(os.sep).split(os.sep)

    def _class(self, path: str) -> str | None:
        name, *inside = self._parts(path)
        return name if inside else None

    def _check_splits(self, images: Iterable[str]) -> None:
        """The folder that seems to hold the class folders, the only one in `root` with images; else ""."""
        parts = [self._parts(path) for path in images]
        inner = sorted({(name, inside[0]) for name, *inside in parts if len(inside) > 1 and is_split(inside[0])})
        splits = sorted({split for _, split in inner})
        if inner and len({name for name, *_ in parts}) == 1:
            there = os.path.join(self.root, inner[0][0])
            raise ValueError(
                f"folder {self.root} has no class folders, but splits in {there} ({some_of(splits)}): "
                f"--data-dir {there} takes them"
            )
        if len(splits) > 1:
            raise ValueError(
                f"folder {self.root} has splits inside its class folders "
                f"({some_of([os.path.join(*each) for each in inner])}), whose images would count together: each has to "
                f"be a folder of classes, {os.path.join(self.root, splits[0], 'CLASS', 'IMAGE')}"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.samples[index]

    def with_indices(self, class_to_idx: Mapping[str, int]) -> "ClassFolder":
        """The same images, with other indices of the classes."""
        other = ClassFolder.__new__(ClassFolder)
        other.__dict__ |= self.__dict__ | {"class_to_idx": dict(class_to_idx)}
        new = {self.class_to_idx[name]: class_to_idx[name] for name in self.classes}
        other.samples = [(path, new[index]) for path, index in self.samples]
        return other

    @property
    def empty(self) -> list[str]:
        """Classes without images, those that only `class_to_idx` names among them."""
        found = {index for _, index in self.samples}
        return [name for name, index in self.class_to_idx.items() if index not in found]

    @property
    def inner(self) -> str:
        """The folder that seems to hold the class folders, the only one in `root` with images; or ""."""
        parts = [self._parts(path) for path, _ in self.samples]
        wraps = len({name for name, *_ in parts}) == 1 and all(len(inside) > 1 for _, *inside in parts)
        return os.path.join(self.root, parts[0][0]) if wraps else ""

    def notes(self) -> list[str]:
        """What a person has to know: classes without images, files that do not count."""
        empty = self.empty
        notes = [f"no images of {count(len(empty), 'class')} ({some_of(empty)})"] if empty else []
        left_out = describe_left_out(self.left_out)
        return notes + ([left_out] if left_out else [])


def read_class_map(path: Path | str) -> dict[str, int]:
    """The index of each class by its name, from a text file with a name a line; that of an empty line has no name.

    Raises:
        ValueError: if the file cannot be read, has no names, or one twice.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"class-map {path} cannot be read as text in UTF-8: {error}") from error
    indices = {name: index for index, name in enumerate(lines) if name}
    if not indices:
        raise ValueError(f"class-map {path} must have the name of a class a line, got none")
    twice = sorted({name for name in indices if lines.count(name) > 1})
    if twice:
        raise ValueError(f"class-map {path} must have every name once, got more of {some_of(twice)}")
    return indices


# --------------------------------------------------------------------------------------------------------------- splits


def visible_folders(root: Path) -> list[str]:
    """Names of the folders right inside another, sorted, hidden ones left out."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and _kind(entry) == "folder")


def is_split(name: str) -> bool:
    """Whether a folder is called as one of a split may be, in any spelling."""
    return _SPLIT.fullmatch(name) is not None


def split_folders(root: Path, classes: bool = True) -> list[str]:
    """Names of the folders that are called like a split, in any spelling.

    Args:
        root: Folder.
        classes: It holds classes, or splits with classes. A class may be called like a split (CIFAR-100 has a "train"),
            but then there are others beside it, and it has no folders inside.
    """
    folders = visible_folders(root)
    named = [name for name in folders if is_split(name)]
    if classes and len(named) < len(folders):
        named = [name for name in named if visible_folders(root / name)]
    return named


def find_split(root: Path, split: str | None, usual: Sequence[str], option: str, classes: bool = True) -> Path | None:
    """The folder of a split: `root` itself for "", None if there are no splits.

    Args:
        root: Folder of the data set.
        split: Name of the folder, or timm's other names for the same split; None for the first that is there of
            `usual`.
        usual: Names.
        option: What the user names the split by, for the message.
        classes: As for :func:`split_folders`.

    Raises:
        ValueError: if there are splits, but not this one, or only in another spelling; or if no split is called so.
    """
    if split == "":
        return root
    splits = split_folders(root, classes)
    wanted = usual if split is None else _names(split)
    for name in wanted:
        if name in splits or (not is_split(name) and (root / name).is_dir()):
            return root / name
    if not splits and (split is None or is_split(split)):
        return None
    text = f"data-dir {str(root)!r} has no folder for the split {wanted[0]!r}"
    if splits:
        near = next((name for name in splits if name[:2].lower() in [other[:2] for other in wanted]), splits[0])
        text += f", but has: {some_of(splits, 8)}; --{option} {near} takes this one, --{option} '' data-dir itself"
    raise ValueError(text)


def _names(split: str) -> list[str]:
    """A split's own name, then the others of timm's for the same."""
    return [split, *(name for names in _SYNONYMS if split in names for name in names if name != split)]


def unusual_names(root: Path, others: Sequence[str]) -> ValueError:
    """The error for splits beside that of the training, of which it is not known which one is to validate."""
    return ValueError(
        f"data-dir {str(root)!r} has no validation images by a usual name ({', '.join(VALIDATION_SPLITS)}), but has: "
        f"{some_of(others)}; --val-split {others[0]} takes this folder, --val-split '' none"
    )
