"""A user's folders, as the commands read them: the right figure, or one line that says what is wrong."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import Done
from pictures import SHARED, as_input, random_images
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from trainings import QUICK, metadata, write_classes

from adderzoo.files.weights import save_weights

Command = Callable[..., Done]

LENET = ("--model", "adder_lenet5.digits", "-j", 0)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def few(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten held-out digits of each class."""
    root = tmp_path_factory.mktemp("few")
    for folder in sorted((digits / "test").iterdir()):
        (root / folder.name).mkdir()
        for path in sorted(folder.iterdir())[:10]:
            shutil.copy(path, root / folder.name)
    return root


@pytest.fixture
def data(few: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(few, tmp_path / "data"))


def top1(adderzoo: Command, folder: Path, *arguments: object) -> tuple[float, int, str]:
    """Accuracy and number of images that `validate` finds, and the line that it begins with."""
    result = folder.parent / "result.json"
    done = adderzoo("validate", *(arguments or LENET), "--data-dir", folder, "--json", result)
    assert done.status == 0, done
    found = json.loads(result.read_text())
    (line,) = [line for line in done.rest if line.startswith("adderzoo validate: ")]
    return found["top1"], found["images"], line.removeprefix("adderzoo validate: ")


def right(images: list[Path]) -> list[bool]:
    """By hand, with the label that scikit-learn has for the number in the file's name."""
    config = timm.get_pretrained_cfg("adder_lenet5.digits")
    model = timm.create_model("adder_lenet5.digits", pretrained=True).eval()
    pixels = [Image.open(path).convert("L").resize((32, 32), Image.Resampling.BICUBIC) for path in images]
    with torch.inference_mode():
        answers = model(as_input(pixels, config.mean, config.std)).argmax(1).tolist()
    labels = load_digits().target
    return [answer == labels[int(path.stem)] for answer, path in zip(answers, images, strict=True)]


def test_some_classes_are_measured_as_what_they_are(adderzoo: Command, data: Path) -> None:
    for name in "01246":
        shutil.rmtree(data / name)
    expected = right(sorted(data.rglob("*.png")))
    assert len(expected) == 50
    accuracy, images, line = top1(adderzoo, data)
    assert accuracy == pytest.approx(100 * np.mean(expected))
    assert accuracy > 90
    assert (images, line) == (
        50,
        f"5 classes by name, 50 images in {data}; no images of 5 classes (0, 1, 2, 4, ...)",
    )


def test_five_of_cifar10s_classes_have_the_accuracy_that_they_have_among_ten(adderzoo: Command, tmp_path: Path) -> None:
    strip = SHARED / "data" / "cifar10" / "test_00.png"
    if not strip.is_file():
        pytest.skip("needs ../shared/data/cifar10")
    pixels = np.asarray(Image.open(strip)).reshape(1000, 32, 32, 3)
    known = json.loads((strip.parent / "labels.json").read_text())
    chosen = [index for index in range(400) if known["test"][index] in (3, 5, 6, 8, 9)]
    for index in chosen:
        folder = tmp_path / "data" / known["classes"][known["test"][index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(folder / f"{index}.png")
    name = "adder_resnet20.cifar10"
    config, model = timm.get_pretrained_cfg(name), timm.create_model(name, pretrained=True).eval()
    with torch.inference_mode():
        x = as_input([Image.fromarray(pixels[index]) for index in chosen], config.mean, config.std)
        answers = model(x).argmax(1).tolist()
    expected = np.mean([answer == known["test"][index] for answer, index in zip(answers, chosen, strict=True)])
    accuracy, images, line = top1(adderzoo, tmp_path / "data", "--model", name, "-j", 0)
    assert images == len(chosen)
    assert abs(accuracy - 100 * expected) <= 100 / len(chosen) + 1e-9  # one image may be undecided in float32
    assert accuracy > 80
    assert line.startswith("5 classes by name, ")


def nest(data: Path) -> None:
    for folder in data.iterdir():
        (folder / "images").mkdir()
        for path in folder.glob("*.png"):
            path.rename(folder / "images" / path.name)


def hide(data: Path) -> None:
    (data / ".ipynb_checkpoints").mkdir()
    shutil.copy(next(data.glob("3/*.png")), data / ".ipynb_checkpoints")
    (data / "4" / "._0.png").write_bytes(b"of a Mac")


def convert(suffix: str, names: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        for path in [path for name in names for path in sorted((data / name).iterdir())]:
            Image.open(path).save(path.with_suffix(suffix), **({"lossless": True} if suffix == ".webp" else {}))
            path.unlink()

    return change


def link(data: Path) -> None:
    for name in "37":
        (data / name / "up").symlink_to("..")
    (data / "all").symlink_to(".")


def pipe(data: Path) -> None:
    os.mkfifo(data / "3" / "0.png")
    os.mkfifo(data / "5.png")


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        (nest, ""),
        (hide, "; 2 files left out: 2 hidden (DATA/.ipynb_checkpoints/"),
        (convert(".bmp", "3"), ""),
        (convert(".webp", "02468"), ""),
        (convert(".TIFF", "13579"), ""),
        (link, "; 3 files left out: 3 by a link to a parent folder (DATA/"),
        (pipe, "; 2 files left out: 2 FIFO (DATA/5.png, ...)"),
    ],
    ids=["nested", "hidden", "bmp", "webp", "tiff", "links", "fifo"],
)
def test_the_same_images_give_the_same_accuracy_in_any_folder(
    adderzoo: Command, few: Path, data: Path, change: Callable[[Path], None], left_out: str
) -> None:
    """And `train`, `quantize` and `predict` see the same images."""
    expected = 100 * np.mean(right(sorted(few.rglob("*.png"))))
    change(data)
    accuracy, images, line = top1(adderzoo, data)
    assert accuracy == pytest.approx(expected)
    assert images == 100
    found = f"100 images in {data}{left_out.replace('DATA', str(data))}"
    assert line.startswith(f"10 classes by name, {found}")
    done = adderzoo("quantize", *LENET, "--data-dir", data, "--images", 4, data.parent / "u8.safetensors")
    assert (done.status, done.rest[0].startswith(f"adderzoo quantize: 10 classes, {found}")) == (0, True), done
    done = adderzoo("predict", data, *LENET[:2], "--topk", 1)
    assert done.status == 0, done
    assert len(done.out.splitlines()) == 200
    assert done.rest[0].startswith(f"adderzoo predict: 100 images{left_out.replace('DATA', str(data))}")
    out = ("--output", data.parent, "--experiment", "run")
    done = adderzoo("train", "--model", "adder_lenet5", "--data-dir", data, "--epochs", 1, "--batch-size", 50, *out)
    assert done.status == 0, done
    found = f"100 training images, no validation images, 10 classes; training: {data}{left_out}"
    assert done.out.splitlines()[1].startswith(f"adder_lenet5: {found.replace('DATA', str(data))}")
    assert json.loads(metadata(data.parent / "run" / "last.safetensors")["classes"]) == [*"0123456789"]


def test_special_files_are_refused_unopened(adderzoo: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "a FIFO"), (Path("/dev/zero"), "a device")):
        message = f"error: image {path} must be a file, got {kind}"
        assert message in adderzoo("predict", path, *LENET[:2]).error
        assert message in adderzoo("upscale", path, "-o", tmp_path / "out.png").error
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.png"]


def scatter(data: Path) -> None:
    for path in sorted(data.rglob("*.png")):
        path.rename(data / f"{path.parent.name}-{path.name}")
    for folder in [path for path in data.iterdir() if path.is_dir()]:
        folder.rmdir()


def split(data: Path) -> None:
    content = list(data.iterdir())
    for name in ("Train", "Test"):
        for path in content:
            shutil.copytree(path, data / name / path.name)
    for path in content:
        shutil.rmtree(path)


def stray(data: Path) -> None:
    shutil.copy(next(data.glob("3/*.png")), data / "stray.png")


def empty(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()
    (data / "readme.md").write_text("nothing here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scatter, "folder DATA has 100 images of no class: move them into folders of their classes, DATA/CLASS/IMAGE"),
        (stray, "folder DATA has 1 image beside the class folders: move them away, or into folders of their classes"),
        (split, r"data-dir 'DATA' has no folder for the split '\w+', but has: Test, Train; --[a-z-]*split T\w+ takes"),
        (empty, "folder DATA has no class folders: there must be DATA/CLASS/IMAGE; 1 file left out"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy_before_anything_is_done(
    adderzoo: Command, data: Path, change: Callable[[Path], None], message: str
) -> None:
    change(data)
    out, expected = data.parent / "out", message.replace("DATA", re.escape(str(data)))
    for command in (
        ("validate", *LENET),
        ("train", "--model", "adder_lenet5", "--output", out),
        ("quantize", *LENET, out / "u8.safetensors"),
        ("profile", *LENET, "--plots", out),
    ):
        assert re.search(f"error: {expected}", adderzoo(*command, "--data-dir", data).error)
    assert not out.exists()


def test_splits_are_named_in_the_line(adderzoo: Command, few: Path, tmp_path: Path) -> None:
    for name in ("Train", "Test"):
        shutil.copytree(few, tmp_path / "data" / name)
    expected = 100 * np.mean(right(sorted(few.rglob("*.png"))))
    done = adderzoo("validate", *LENET, "--data-dir", tmp_path / "data", "--split", "Test")
    assert done.rest[0] == f"adderzoo validate: 10 classes by name, 100 images in {tmp_path / 'data' / 'Test'}"
    (tmp_path / "data" / "Test").rename(tmp_path / "data" / "test")
    accuracy, _, line = top1(adderzoo, tmp_path / "data")
    assert accuracy == pytest.approx(expected)
    assert line.endswith(f" in {tmp_path / 'data' / 'test'}")
    for name in ("val", "validation"):  # before test
        shutil.copytree(few / "3", tmp_path / "data" / name / "3")
        _, images, line = top1(adderzoo, tmp_path / "data")
        assert (images, line.partition("; ")[0]) == (10, f"1 class by name, 10 images in {tmp_path / 'data' / name}")


# -------------------------------------------------------------------------------------------------- order and class map


def test_weights_that_were_trained_with_another_order_are_right_by_their_names(
    train: Command, adderzoo: Command, tmp_path: Path
) -> None:
    """timm's order has 2 before 10. Without names that cannot be known, and the order that is taken is said."""
    names = [str(number) for number in (1, 2, 3, 10)]
    for index, name in enumerate(names):  # shades, which a network learns at once
        (tmp_path / "data" / name).mkdir(parents=True)
        for seed, image in enumerate(random_images(16, mode="L", seed=index)):
            shade = image.point(lambda value, index=index: 80 * index + value // 20)
            shade.save(tmp_path / "data" / name / f"{seed}.png")
    (tmp_path / "natural.txt").write_text("\n".join(names))
    options = ("--model", "cnn_lenet5", "--data-dir", tmp_path / "data", "--class-map", tmp_path / "natural.txt")
    done = train(*options, "--epochs", 40, "--batch-size", 16, "--lr", 0.02, "--no-aug")
    assert done.status == 0, done
    weights = tmp_path / "out" / "run" / "last.safetensors"
    assert json.loads(metadata(weights)["classes"]) == names
    accuracy, _, line = top1(adderzoo, tmp_path / "data", "--model", "cnn_lenet5", "--checkpoint", weights, "-j", 0)
    assert accuracy == 100
    assert line == f"4 classes by name, 64 images in {tmp_path / 'data'}"

    torch.save(load_file(weights), tmp_path / "nameless.pth")
    nameless = ("--model", "cnn_lenet5", "--num-classes", 4, "--checkpoint", tmp_path / "nameless.pth", "-j", 0)
    accuracy, _, line = top1(adderzoo, tmp_path / "data", *nameless)
    assert accuracy == 25  # 1 alone is where it was
    assert line.startswith("4 classes in the order of text, 1, 10, 2, 3 (--class-map gives another), 64 images")
    accuracy, _, line = top1(adderzoo, tmp_path / "data", *nameless, "--class-map", tmp_path / "natural.txt")
    assert accuracy == 100
    assert line.startswith("4 classes by class-map, 64 images")

    start = ("--initial-checkpoint", weights, "--data-dir", tmp_path / "data", "--model", "cnn_lenet5")
    done = train(*start, *QUICK, "--lr", 1e-9, "--experiment", "again", "--val-split", "")
    assert done.status == 0, done
    assert json.loads(metadata(tmp_path / "out" / "again" / "last.safetensors")["classes"]) == names


def test_nameless_weights_take_some_classes_only_where_the_tag_knows_them_all(adderzoo: Command, data: Path) -> None:
    torch.save(timm.create_model("adder_lenet5.digits", pretrained=True).state_dict(), data.parent / "w.pth")
    shutil.rmtree(data / "0")
    nameless = ("--model", "adder_lenet5", "--checkpoint", data.parent / "w.pth", "-j", 0)
    accuracy, _, line = top1(adderzoo, data, *nameless)
    assert line == f"9 classes by name, 90 images in {data}; no images of 1 class (0 - zero)"
    assert accuracy > 95
    (data / "1").rename(data / "uno")
    error = adderzoo("validate", *nameless, "--data-dir", data).error
    assert "the data set has 9 classes (2, 3, 4, 5, ...), the network 10, and nothing says which these are" in error
    error = adderzoo("validate", *LENET, "--data-dir", data).error
    assert "1 class that the network was not trained on (uno; it knows 0, 1, 2, 3, ...)" in error
    (data.parent / "map.txt").write_text("0\nuno\n2\n3\n4\n5\n6\n7\n8\n9\n")
    assert top1(adderzoo, data, *nameless, "--class-map", data.parent / "map.txt")[0] == accuracy


def test_imagenets_wnids_are_known(adderzoo: Command, tmp_path: Path) -> None:
    """Three classes of a thousand; and the checkpoint of a network for fewer has none of them."""
    write_classes(tmp_path / "data", {"n01443537": 1, "n15075141": 2, "n01440764": 1}, (224, 224), "RGB")
    torch.manual_seed(0)
    torch.save(timm.create_model("adder_resnet18").state_dict(), tmp_path / "w.pth")
    command = ("--model", "adder_resnet18", "--checkpoint", tmp_path / "w.pth", "-j", 0)
    _, images, line = top1(adderzoo, tmp_path / "data", *command)
    assert images == 4
    assert line.startswith(f"3 classes by name, 4 images in {tmp_path / 'data'}; no images of 997 classes (n01484850, ")
    (tmp_path / "data" / "n01440764").rename(tmp_path / "data" / "tench")
    error = adderzoo("validate", *command, "--data-dir", tmp_path / "data").error
    assert "the data set has 3 classes (n01443537, n15075141, tench), the network 1000, and nothing says" in error


def test_a_class_map_beyond_the_networks_classes_is_refused(adderzoo: Command, data: Path) -> None:
    (data.parent / "map.txt").write_text("\n" * 10 + "3\n")
    error = adderzoo("validate", *LENET, "--data-dir", data, "--class-map", data.parent / "map.txt").error
    assert "class-map must have at most 10 lines, the network's classes, got 3 on line 11" in error


def test_a_training_is_not_resumed_with_other_classes(train: Command, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"b": 4, "c": 4})
    assert train("--data-dir", folder, *QUICK).status == 0
    write_classes(tmp_path / "data", {"a": 4})
    (folder / "c").rename(tmp_path / "c")
    error = train("--data-dir", folder, *QUICK, "--resume").error
    assert f"resume needs the classes of the training in {tmp_path / 'out' / 'run'}, b, c (2), got a, b (2)" in error


def test_tiny_imagenets_layout(train: Command, adderzoo: Command, tmp_path: Path) -> None:
    """train/WNID/images/*; its validation images are in no folders of classes until they are sorted."""
    for name in ("n01443537", "n01629819"):
        write_classes(tmp_path / "tiny" / "train" / name, {"images": 4})
        (tmp_path / "tiny" / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
    write_classes(tmp_path / "tiny" / "val", {"images": 2})
    (tmp_path / "tiny" / "val" / "val_annotations.txt").write_text("0.png n01443537")
    error = train("--data-dir", tmp_path / "tiny", *QUICK).error
    assert "the validation images have classes that the training images do not have: 'images'; --val-split" in error
    done = train("--data-dir", tmp_path / "tiny", *QUICK, "--val-split", "")
    assert "8 training images, no validation images, 2 classes" in done.out
    assert "2 files left out: 2 of no format that Pillow opens" in done.out
    weights = tmp_path / "out" / "run" / "last.safetensors"
    assert json.loads(metadata(weights)["classes"]) == ["n01443537", "n01629819"]
    command = ("validate", "--model", "adder_lenet5", "--checkpoint", weights, "--data-dir", tmp_path / "tiny")
    error = adderzoo(*command).error
    assert "1 class that the network was not trained on (images; it knows n01443537, n01629819)" in error


def test_names_of_another_number_of_classes_are_refused(adderzoo: Command, data: Path) -> None:
    checkpoint = data.parent / "w.safetensors"
    save_weights(timm.create_model("adder_lenet5"), checkpoint, {"classes": '["a", "b"]'})
    error = adderzoo("validate", "--model", "adder_lenet5", "--checkpoint", checkpoint, "--data-dir", data).error
    assert f"{checkpoint} has 2 class names, the network 10 classes" in error


# ----------------------------------------------------------------------------------------------------- super-resolution


def photos(root: Path, *names: str, size: tuple[int, int] = (16, 16)) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        random_images(1, size)[0].save(root / name)
    return root


BICUBIC = ("validate", "--model", "bicubic", "--model-kwargs", "scale=2", "--data-dir")


def test_super_resolution_is_measured_on_the_split_that_is_said(adderzoo: Command, tmp_path: Path) -> None:
    root = photos(tmp_path / "data", "train/1.png", "train/2.png", "val/1.webp", "val/.hidden.png")
    os.mkfifo(root / "val" / "2.png")
    done = adderzoo(*BICUBIC, root)
    assert done.status == 0, done
    line = next(line for line in done.rest if line.startswith("adderzoo validate: "))
    assert line.startswith(f"adderzoo validate: 1 image in {root / 'val'}; small ones are made; 2 files left out: ")
    assert "x2, 1 images" in done.out
    done = adderzoo(*BICUBIC, root, "--split", "train")
    assert f"2 images in {root / 'train'}; small ones are made" in done.err


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("hr/1.png", "lr/1.png"), "hr, lr"),
        (("Train/1.png", "Val/1.png"), "Train, Val"),
        (("x3/1.png", "x4/1.png"), "x3, x4"),
        (("Set5_HR/1.png", "Set5_LR_bicubic/1.png"), "Set5_HR, Set5_LR_bicubic"),
        (("Set5/HR/1.png", "Set5/LR_bicubic/X2/1x2.png"), "Set5/HR, Set5/LR_bicubic"),
        (("photos/train/1.png", "photos/val/1.png", "2.png"), "photos/train, photos/val"),
    ],
)
def test_images_of_several_kinds_are_not_taken_together(
    adderzoo: Command, tmp_path: Path, names: tuple[str, ...], found: str
) -> None:
    root = photos(tmp_path / "data", *names)
    train = ("train", "--model", "adder_edsr_small_x2", "--output", tmp_path / "out", "--data-dir")
    for command in (BICUBIC, train):
        error = adderzoo(*command, root).error
        assert f"folder {root} has images of several kinds, in {found}: name one of them" in error


def test_pairs_are_found_by_their_paths(adderzoo: Command, tmp_path: Path) -> None:
    root = photos(tmp_path / "data", "HR/a/1.png", "HR/b/1.png")
    photos(root, "LR/a/1.png", "LR/b/1x2.bmp", "LR/2.png", size=(8, 8))
    done = adderzoo(*BICUBIC, root)
    assert done.status == 0, done
    assert f"1 file left out: 1 without a large image ({root / 'LR' / '2.png'})" in done.err
    photos(root, "LR/a/1.bmp", size=(8, 8))
    error = adderzoo(*BICUBIC, root).error
    assert f"folder {root / 'LR'} has two images of the same name, 1.bmp and 1.png" in error
