import re
import traceback
from pathlib import Path

import numpy as np
import pytest
from batches import read
from example_data import write_digits
from pictures import SHARED, random_images, write_folder
from PIL import Image
from sklearn.datasets import load_digits

from adderzoo.data import check_classes, open_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


def contents(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_digits_are_898_to_train_and_899_to_test(digits: Path) -> None:
    assert len(list(digits.glob("train/*/*.png"))) == 898
    assert len(list(digits.glob("test/*/*.png"))) == 899
    assert len(contents(digits)) == 1797


def test_digits_keep_every_pixel_and_label_of_scikit_learn(digits: Path) -> None:
    source = load_digits()
    found = {int(path.stem): path for path in digits.rglob("*.png")}
    assert sorted(found) == list(range(1797))
    for index, path in found.items():
        image = Image.open(path)
        assert (image.mode, image.size) == ("L", (8, 8))
        # 16 levels are spread over 255: 0 stays 0, 16 becomes 255, and rounding undoes it.
        assert np.array_equal(np.rint(np.asarray(image) * (16 / 255)), source.images[index])
        assert path.parent.name == str(source.target[index])
        assert path.parent.parent.name == ("train" if index < 898 else "test")
    assert {np.asarray(Image.open(path)).max() for path in found.values()} <= {*range(200, 256)}


def test_digits_written_twice_are_the_same_files(digits: Path) -> None:
    before = contents(digits)
    write_digits(digits)
    assert contents(digits) == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["", "torch/image_folder"])
@pytest.mark.parametrize("damage", ["truncated", "no image", "empty"])
def test_a_damaged_image_is_an_error_that_names_the_file(tmp_path: Path, damage: str, name: str, workers: int) -> None:
    root = write_folder(tmp_path, random_images(10), range(10))
    path = root / "class_5" / "00005.png"
    path.write_bytes({"truncated": path.read_bytes()[:200], "no image": b"no image", "empty": b""}[damage])
    dataset = open_dataset(name, str(root), "validation", 3)
    with pytest.raises(ValueError, match=re.escape(f"image {path} cannot be read: ")) as info:
        read(dataset, workers=workers)
    traceback.clear_frames(info.tb)  # else the loading processes end with the garbage, and 5 s later


def test_a_split_is_looked_for_under_its_usual_names(tmp_path: Path) -> None:
    for part, label in (("train", 1), ("val", 2), ("test", 3)):
        write_folder(tmp_path / part, random_images(2), [label, label])
    for split, label in (("train", 1), ("validation", 2), ("test", 3)):
        assert read(open_dataset("", str(tmp_path), split, 3))[1] == [label, label]


def test_a_folder_of_other_splits_is_refused_and_not_taken_together(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / part, random_images(2), [0, 1])
    with pytest.raises(ValueError, match=r"no folder for the split 'validation', but has: test, train; --split test"):
        open_dataset("", str(tmp_path), "validation", 3)


def test_a_class_without_images_keeps_its_index(tmp_path: Path) -> None:
    root = write_folder(tmp_path, random_images(3), [2, 5, 11], classes=12)
    assert read(open_dataset("", str(root), "validation", 3))[1] == [2, 5, 11]
    for path in root.iterdir():
        if not any(path.iterdir()):
            path.rmdir()
    assert read(open_dataset("", str(root), "validation", 3))[1] == [0, 1, 2]


def test_a_class_map_decides_the_indices(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", random_images(3), [0, 1, 2])
    (tmp_path / "map.txt").write_text("class_2\nclass_1\nclass_0\n")
    assert read(open_dataset("", str(root), "validation", 3, class_map=str(tmp_path / "map.txt")))[1] == [2, 1, 0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for index, name in enumerate(("apple", "train", "whale")):
        (tmp_path / name).mkdir()
        random_images(1, seed=index)[0].save(tmp_path / name / "0.png")
    assert read(open_dataset("", str(tmp_path), "validation", 3))[1] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("", None, "data-dir must be a folder, got None"),
        ("", "nowhere", "data-dir must be a folder, got 'nowhere'"),
        ("", ".", "folder . has no class folders: there must be ./CLASS/IMAGE"),
        ("torch/mnist", ".", "Dataset not found"),
        ("torch/nonsense", ".", "nonsense"),
        ("torch/mnist", None, "'torch/mnist' in data-dir None cannot be read"),
        ("nonsense/mnist", None, "dataset must begin with torch/, hfds/, hfids/, tfds/, wds/, got 'nonsense/mnist'"),
        ("wds/x", ".", "split validation not found"),
    ],
)
def test_what_is_no_data_set_is_a_value_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, root: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_dataset(name, root, "validation", 3)


def test_a_network_of_two_channels_cannot_be_fed_with_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have 1 or 3 channels to be fed with images, got 2"):
        open_dataset("", str(tmp_path), "validation", 2)


@pytest.mark.parametrize("name", ["", "torch/image_folder"])
def test_more_classes_than_the_network_has_are_refused(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path, random_images(12), range(12), classes=12)
    dataset = open_dataset(name, str(root), "validation", 3)
    check_classes(dataset, 12)
    with pytest.raises(ValueError, match="the data set has 12 classes, the network 11"):
        check_classes(dataset, 11)


def test_real_mnist_is_read_as_torchvision_keeps_it() -> None:
    root = SHARED / "data" / "mnist"
    if not root.is_dir():
        pytest.skip("needs ../shared/data/mnist")
    dataset = open_dataset("torch/mnist", str(root), "test", 1)
    assert len(dataset) == 10_000
    raw = np.frombuffer((root / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(-1, 28, 28)
    for index in (0, 1, 9_999):
        image, label = dataset[index]
        assert np.array_equal(np.asarray(image), raw[index])
        assert label == (root / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8 + index]
