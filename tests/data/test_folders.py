"""The one reader of folders: what is a class, what is an image, what is left out and what is refused."""

import os
import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from batches import read
from pictures import random_images, write_folder
from PIL import Image
from torchvision.datasets import ImageFolder

from adderzoo.data import (
    ClassFolder,
    check_file,
    class_indices,
    describe_dataset,
    find_images,
    match_classes,
    open_dataset,
    open_training_data,
    read_image,
    spread,
)


def write(root: Path, *names: str) -> Path:
    """An image, or a file of text if its name says so, for each path."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".md", ""):
            path.write_text("no image")
        else:
            random_images(1, (8, 8), seed=seed)[0].save(path)
    return root


def relative(folder: ClassFolder) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, folder.root), index) for path, index in folder]  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------------- what is there


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    """Random names at random depths; torchvision keeps the order of a folder's files before those of inner folders."""
    random.seed(seed := random.randrange(10**6))
    print("seed", seed)
    alphabet = ["a", "B", "10", "2", "-x", "Z z", "é"]
    for _ in range(60):
        depth = random.randrange(1, 4)
        write(tmp_path, "/".join([*(random.choice(alphabet) for _ in range(depth)), f"{random.randrange(99)}.png"]))
    ours, theirs = ClassFolder(tmp_path), ImageFolder(str(tmp_path))
    assert ours.classes == theirs.classes
    assert ours.class_to_idx == theirs.class_to_idx
    assert sorted(ours.samples) == sorted(theirs.samples)
    assert [index for _, index in ours.samples] == sorted(index for _, index in theirs.samples)
    assert ours.left_out == {}


def test_classes_are_in_the_order_of_their_names_as_text(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/1.png" for name in ("2", "10", "1", "b", "B")))
    assert ClassFolder(tmp_path).classes == ["1", "10", "2", "B", "b"]


@pytest.mark.parametrize("inside", ["images", "session1/day2", ""])
def test_the_first_folder_is_the_class(tmp_path: Path, inside: str) -> None:
    root = write(tmp_path, *(f"{name}/{inside}/{index}.png" for name in ("n01", "n02") for index in range(2)))
    folder = ClassFolder(root)
    assert folder.class_to_idx == {"n01": 0, "n02": 1}
    assert [index for _, index in folder.samples] == [0, 0, 1, 1]


FORMATS = [
    *("apng", "bmp", "dib", "gif", "ico", "jfif", "jp2", "jpe", "jpeg", "jpg", "JPG", "pbm", "pcx", "pgm"),
    *("png", "PNG", "ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
]


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_of_pillows_counts(tmp_path: Path, extension: str) -> None:
    """Written by Pillow and read back as the same pixels, but for lossy formats."""
    image = random_images(1)[0].convert("1" if extension == "pbm" else "L" if extension == "pgm" else "RGB")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    image.save(tmp_path / "b" / f"1.{extension}", **({"lossless": True} if extension == "webp" else {}))
    images = open_dataset("", str(tmp_path), None, 3)
    assert len(images) == 1
    found, label = images[0]
    assert label == 1
    assert found.size == image.size
    if extension.lower() not in ("gif", "jfif", "jp2", "jpe", "jpeg", "jpg"):
        assert found.tobytes() == image.convert("RGB").tobytes()
    assert find_images([tmp_path]).images == [str(tmp_path / "b" / f"1.{extension}")]


@pytest.mark.parametrize("extension", ["mpg", "h5", "eps", "wmf", "txt", "json", "npy", "svg", ""])
def test_what_pillow_cannot_decode_by_itself_does_not_count(tmp_path: Path, extension: str) -> None:
    write(tmp_path, "a/1.png", "b/1.png")
    odd = tmp_path / "a" / f"odd.{extension}"
    odd.write_bytes(b"x")
    assert ClassFolder(tmp_path).left_out == {"of no format that Pillow opens": [str(odd)]}


def test_hidden_names_do_not_count_and_are_said(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "a/._1.png", "b/1.png", ".ipynb_checkpoints/1-checkpoint.png", ".git/x/y.txt")
    write(tmp_path, "a/.thumbs/1.png", "__MACOSX/a/._1.png", "b/@eaDir/1.png", ".DS_Store")
    folder = ClassFolder(tmp_path)
    assert folder.classes == ["a", "b"]
    assert relative(folder) == [("a/1.png", 0), ("b/1.png", 1)]
    assert {reason: len(paths) for reason, paths in folder.left_out.items()} == {"hidden": 7}
    assert find_images([tmp_path]).images == [str(tmp_path / name / "1.png") for name in "ab"]


def test_a_class_without_images_counts_and_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/notes.txt", "d/1.png")
    (tmp_path / "c").mkdir()
    images = open_dataset("", str(tmp_path), None, 3)
    assert read(images)[1] == [0, 3]
    assert describe_dataset(images) == (
        f"4 classes, 2 images in {tmp_path}; no images of 2 classes (b, c); "
        f"1 file left out: 1 of no format that Pillow opens ({tmp_path / 'b' / 'notes.txt'})"
    )


def test_names_that_cannot_be_printed_are_said_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/1.png", "a/two\nlines.txt")
    (tmp_path / os.fsdecode(b"b/\xff.txt")).write_text("x")
    text = describe_dataset(open_dataset("", str(tmp_path), None, 3))
    assert text.isprintable()
    assert "2 files left out: 2 of no format" in text


# ---------------------------------------------------------------------------------------------- links and special files


def test_special_files_are_left_out_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a FIFO would wait for ever."""
    write(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a" / "fifo.png")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "a" / "link.png").symlink_to("fifo.png")
    (tmp_path / "b" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("b/socket.png")
        folder = ClassFolder(tmp_path)
        assert relative(folder) == [("a/1.png", 0), ("b/1.png", 1)]
        counts = {reason: len(paths) for reason, paths in folder.left_out.items()}
        assert counts == {"FIFO": 3, "socket": 1, "device": 1}
        assert len(find_images([tmp_path]).images) == 2
        for path, kind in (
            ("a/fifo.png", "a FIFO"),
            ("b/socket.png", "a socket"),
            ("/dev/zero", "a device"),
            ("a", "a folder"),
        ):
            with pytest.raises(ValueError, match=f"image {path} must be a file, got {kind}"):
                check_file(Path(path))
    for path in ("a/fifo.png", "/dev/zero", "b/socket.png"):
        with pytest.raises(ValueError, match=f"image {path} must be a file, got a "):
            find_images([Path(path)])


def test_links_are_followed(tmp_path: Path) -> None:
    """To a class, to a folder inside one, to images."""
    write(tmp_path / "elsewhere", "x/1.png", "x/2.png", "y/1.png", "z/1.png")
    root = write(tmp_path / "data", "a/1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "x")
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere" / "y")
    (root / "a" / "9.png").symlink_to(tmp_path / "elsewhere" / "z" / "1.png")
    folder = ClassFolder(root)
    assert relative(folder) == [("a/1.png", 0), ("a/9.png", 0), ("a/more/1.png", 0), ("b/1.png", 1), ("b/2.png", 1)]
    assert folder.left_out == {}


def test_links_to_parent_folders_count_no_image_twice(tmp_path: Path) -> None:
    """Two of them would grow without end, one doubles and mixes the classes."""
    root = write(tmp_path / "data" / "train", *(f"{name}/{index}.png" for name in "abc" for index in range(10)))
    write(tmp_path / "data" / "val", "a/1.png")
    for place, target in {
        "a/up": "..",
        "b/up": "..",
        "b/split": str(root),
        "c/self": ".",
        "c/above": "../..",
        "c/top": "/",
        "again": ".",
    }.items():
        (root / place).symlink_to(target)
    folder = ClassFolder(root)
    assert folder.classes == ["a", "b", "c"]
    assert len(folder) == len(set(folder.samples)) == 30
    assert {reason: len(paths) for reason, paths in folder.left_out.items()} == {"by a link to a parent folder": 7}
    assert len(find_images([root]).images) == 30


def test_a_link_out_of_the_folder_and_up_again_is_a_parents_too(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a/1.png", "b/1.png", "c/1.png")
    root = tmp_path / "data"
    root.mkdir()
    for name in "ab":
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "a" / "up").symlink_to("..")
    assert relative(ClassFolder(root)) == [("a/1.png", 0), ("b/1.png", 1)]


def test_a_folder_that_is_linked_to_is_of_the_class_that_it_lies_in(tmp_path: Path) -> None:
    root = write(tmp_path, "b/1.png", "c/1.png")
    (root / "b" / "friends").symlink_to("../c")
    (root / "a").symlink_to("c")
    folder = ClassFolder(root)
    assert relative(folder) == [("b/1.png", 0), ("c/1.png", 1)]
    assert list(folder.left_out) == ["by a link to a folder that is read already"]


def test_broken_links_and_rings_of_links_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, "a/1.png", "b/1.png")
    (root / "a" / "2.png").symlink_to("nowhere.png")
    (root / "a" / "3.png").symlink_to("3.png")
    (root / "c").symlink_to("d")
    (root / "d").symlink_to("c")
    folder = ClassFolder(root)
    assert folder.classes == ["a", "b"]
    assert len(folder.left_out["by a broken link"]) == 4
    with pytest.raises(ValueError, match=r"image .*3\.png cannot be read: Too many levels"):
        check_file(root / "a" / "3.png")


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1.png", "2.png"), "has 2 images of no class: move them into folders of their classes, DIR/CLASS/IMAGE; got"),
        (("a/1.png", "b/1.png", "stray.png"), "has 1 image beside the class folders: move them away, or into folders"),
        (("readme.md",), "has no class folders: there must be DIR/CLASS/IMAGE; 1 file left out: 1 of no format"),
        (
            ("a/x.txt", "b/y.txt"),
            "has no images in its class folders: there must be DIR/CLASS/IMAGE; 2 files",
        ),
        ((), "has no class folders: there must be DIR/CLASS/IMAGE"),
    ],
)
def test_what_holds_no_class_folders_is_refused_with_the_remedy(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    write(tmp_path, *names)
    with pytest.raises(ValueError, match=re.escape(f"folder {tmp_path} {message.replace('DIR', str(tmp_path))}")):
        open_dataset("", str(tmp_path), None, 3)


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("Training", "Tests"),
    ],
)
def test_splits_in_another_spelling_are_refused_and_taken_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    train, val = names
    for index, split in enumerate(names):
        write(tmp_path / split, *(f"{name}/{index}.png" for name in "ab"))
    with pytest.raises(ValueError, match=rf"no folder for the split 'validation', but has: .*--split {val} takes"):
        open_dataset("", str(tmp_path), None, 3)
    with pytest.raises(ValueError, match=rf"no folder for the split 'train', but has: .*--train-split {train} takes"):
        open_training_data("", str(tmp_path), "train", None, 3)
    with pytest.raises(ValueError, match=f"no validation images by a usual name .*; --val-split {val} takes this"):
        open_training_data("", str(tmp_path), train, None, 3)
    images = open_training_data("", str(tmp_path), train, val, 3)
    assert [os.path.relpath(each.source.root, tmp_path) for each in images] == [train, val]
    assert open_training_data("", str(tmp_path), train, "", 3)[1] is None
    (tmp_path / train).rename(tmp_path / "train")
    with pytest.raises(ValueError, match=f"no validation images by a usual name .* has: {val}"):
        open_training_data("", str(tmp_path), "train", None, 3)


def test_splits_of_loose_images_are_no_classes(tmp_path: Path) -> None:
    """Of cats and dogs by their file names, with classes train and test else."""
    write(tmp_path, *(f"{split}/{name}.{index}.png" for split in ("train", "test1") for name in "ab" for index in "12"))
    with pytest.raises(ValueError, match=r"folder .*train has 4 images of no class"):
        open_training_data("", str(tmp_path), "train", None, 3)
    with pytest.raises(ValueError, match=r"no folder for the split 'validation', but has: test1, train"):
        open_dataset("", str(tmp_path), None, 3)


@pytest.mark.parametrize("wrapper", ["data", "archive/images"])
@pytest.mark.parametrize("splits", [("train", "val"), ("test",), ("Training", "Test")])
def test_splits_in_another_folder_are_no_classes(tmp_path: Path, wrapper: str, splits: tuple[str, ...]) -> None:
    """As archives are unpacked, with a folder of something else beside them."""
    for split in splits:
        write(tmp_path / wrapper / split, "a/1.png", "b/1.png")
    root = (tmp_path / wrapper).parent
    (root / "labels").mkdir()
    message = f"folder {root} has no class folders, but splits in {tmp_path / wrapper} ({', '.join(sorted(splits))}): "
    for open_it in (lambda: open_dataset("", str(root), None, 3), lambda: training(root)):
        with pytest.raises(ValueError, match=re.escape(f"{message}--data-dir {tmp_path / wrapper} takes them")):
            open_it()
    assert open_dataset("", str(tmp_path / wrapper), splits[-1], 3).source.classes == ["a", "b"]


def test_splits_inside_classes_are_not_taken_together(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{split}/1.png" for name in "ab" for split in ("train", "test")))
    for open_it in (lambda: open_dataset("", str(tmp_path), None, 3), lambda: training(tmp_path)):
        with pytest.raises(
            ValueError, match=r"has splits inside its class folders \(a/test, a/train, b/test, b/train\)"
        ):
            open_it()
    path = tmp_path / "map.txt"
    path.write_text("a\nb\n")
    assert len(open_dataset("", str(tmp_path), None, 3, str(path))) == 4  # the user has said what the classes are
    other = write(tmp_path / "other", "bus/1.png", "bus/train/1.png", "car/1.png")  # one name may be anything
    assert open_dataset("", str(other), None, 3).source.classes == ["bus", "car"]


def test_a_folder_around_the_class_folders_is_named(tmp_path: Path) -> None:
    write(tmp_path, "digits/0/1.png", "digits/1/1.png", "__MACOSX/digits/0/._1.png")
    remedy = f"--data-dir {tmp_path / 'digits'} takes them"
    with pytest.raises(ValueError, match=re.escape(remedy)):
        training(tmp_path)
    for known in (["0", "1"], None):
        with pytest.raises(ValueError, match=re.escape(remedy)):
            match_classes(open_dataset("", str(tmp_path), None, 3), 2, known)
    with pytest.raises(ValueError, match=r"teaches it others$"):
        match_classes(open_dataset("", str(write(tmp_path / "b", "x/1.png")), None, 3), 2, ["0", "1"])


def test_a_training_needs_images_of_two_classes(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/notes.txt")
    with pytest.raises(ValueError, match=r"needs at least two classes, data-dir .* has images of one: 'a'"):
        training(tmp_path)


def training(root: Path) -> Any:
    return open_training_data("", str(root), "train", None, 3)


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "bus/1.png", "Test/1.png")
    images = open_dataset("", str(tmp_path), None, 3)
    assert class_indices(images) == {"Test": 0, "bus": 1, "train": 2}
    train, val = open_training_data("", str(tmp_path), "train", None, 3)
    assert (class_indices(train), val) == (class_indices(images), None)
    both = write(tmp_path / "both", "train/1.png", "test/1.png")
    assert open_dataset("", str(both), "", 3).source.classes == ["test", "train"]


@pytest.mark.parametrize("name", ["validation", "val", "valid", "eval", "evaluation", "test"])
def test_the_split_to_evaluate_is_found_by_the_names_that_a_training_takes(tmp_path: Path, name: str) -> None:
    for split in ("train", name, "test"):
        write(tmp_path / split, *(f"{each}/1.png" for each in "ab"))
    assert open_dataset("", str(tmp_path), None, 3).source.root == str(tmp_path / name)
    _, val = open_training_data("", str(tmp_path), "train", None, 3)
    assert val.source.root == str(tmp_path / name)
    assert open_dataset("", str(tmp_path / name), None, 3).source.root == str(tmp_path / name)
    with pytest.raises(ValueError, match="no folder for the split 'fold3', but has: "):
        open_dataset("", str(tmp_path), "fold3", 3)


# ------------------------------------------------------------------------------------------------ whose index is whose


def test_classes_are_found_by_their_names(tmp_path: Path) -> None:
    root = write(tmp_path, "truck/1.png", "cat/1.png", "cat/2.png")
    images = match_classes(open_dataset("", str(root), None, 3), 4, ["truck", "dog", "bird", "cat"])
    assert read(images)[1] == [3, 3, 0]
    assert describe_dataset(images) == f"2 classes, 3 images in {root}; no images of 2 classes (dog, bird)"
    with pytest.raises(ValueError, match=r"1 class that the network was not trained on \(cat; it knows truck, dog"):
        match_classes(open_dataset("", str(root), None, 3), 3, ["truck", "dog", "bird"])


def test_mnists_digits_are_found_by_either_name(tmp_path: Path) -> None:
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    known = [f"{digit} - {word}" for digit, word in enumerate(words)]
    for name, label in (("7", 7), ("nine", 9), ("3 - three", 3)):
        root = write(tmp_path / name.replace(" ", ""), f"{name}/1.png")
        assert read(match_classes(open_dataset("", str(root), None, 3), 10, known))[1] == [label]
    digits = match_classes(open_dataset("", str(write(tmp_path / "d", "3 - three/1.png")), None, 3), 10, "0123456789")
    assert read(digits)[1] == [3]


@pytest.mark.parametrize(("count", "message"), [(5, "5 classes (class_0, class_1"), (12, "12 classes, the network 10")])
def test_classes_without_names_must_be_as_many_as_the_networks(tmp_path: Path, count: int, message: str) -> None:
    root = write_folder(tmp_path, random_images(count), range(count), classes=count)
    with pytest.raises(ValueError, match=re.escape(message)):
        match_classes(open_dataset("", str(root), None, 3), 10, None)
    assert len(match_classes(open_dataset("", str(root), None, 3), count, None)) == count


def test_a_class_map_leaves_out_what_it_does_not_name(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "a/1.png", "b/1.png", "c/1.png")
    path = tmp_path / "map.txt"
    path.write_text("c\n\na\n")  # nothing for the second
    images = open_dataset("", str(root), None, 3, class_map=str(path))
    assert read(images)[1] == [2, 0]
    assert "1 file left out: 1 of classes that class-map does not name" in describe_dataset(images)
    for text, message in (
        ("d\ne\n", "class-map must name the classes in .*, a, b, c; it names none"),
        ("a\nb\na\n", "must have every name once, got more of a"),
        ("\n", "must have the name of a class a line, got none"),
        (b"\xff\xfe", "cannot be read as text in UTF-8"),
    ):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            open_dataset("", str(root), None, 3, class_map=str(path))


def test_a_training_goes_on_with_the_order_of_the_weights_if_the_classes_are_the_same(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split, *(f"{name}/1.png" for name in ("1", "2", "10")))
    natural = ["1", "2", "10"]
    for known, order in ((None, ["1", "10", "2"]), (natural, natural), (["1", "2", "3"], ["1", "10", "2"])):
        train, val = open_training_data("", str(tmp_path), "train", None, 3, known=known)
        assert [*class_indices(train)] == order
        assert read(train)[1] == read(val)[1] == [order.index(name) for name in ("1", "10", "2")]


def test_images_are_pixels_of_the_files_that_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/1.png")
    images = open_dataset("", str(tmp_path), None, 3)
    for index, (path, _) in enumerate(images.source.samples):
        assert images[index][0].tobytes() == Image.open(path).tobytes()


def test_a_damaged_image_is_named_once_among_some_too(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    images = open_dataset("", str(tmp_path), None, 3)
    for some in (images, spread(images, 2)):
        with pytest.raises(
            ValueError, match=f"^image {re.escape(str(tmp_path / 'b' / '1.png'))} cannot be read: it is"
        ):
            some[1]


def test_paths_may_be_texts(tmp_path: Path) -> None:
    path = str(write(tmp_path, "a.png") / "a.png")
    check_file(path)
    assert find_images([path, str(tmp_path)]).images == [path, path]
    assert read_image(path, 3).size == (8, 8)
