import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import Done
from pictures import as_input, random_images, write_folder
from PIL import Image
from safetensors.torch import save_file
from torch import nn

Command = Callable[..., Done]
DIGITS = ("predict", "-m", "adder_lenet5.digits")
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def predict(adderzoo: Command) -> Callable[..., list[dict[str, Any]]]:
    """Predictions that must succeed, from the command's JSON.

    A line says network, weights and device; of folders, another one what is in them.
    """

    def run(*arguments: object) -> list[dict[str, Any]]:
        done = adderzoo(*arguments, "--json", "-")
        rows = json.loads(done.out)
        weights, *lines = done.err.splitlines()
        assert done.status == 0
        assert re.fullmatch(r"adderzoo predict: \w+(\.\w+)?, (published weights|weights of .+), on .+", weights)
        folders = any(isinstance(argument, Path) and argument.is_dir() for argument in arguments)
        assert [line.startswith(f"adderzoo predict: {len(rows)} image") for line in lines] == [True] * folders
        return rows

    return run


def random_network(name: str, **arguments: Any) -> nn.Module:
    """Answers depend on the image: its BatchNorm has seen some."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments)
    channels = arguments.get("in_chans", model.pretrained_cfg["input_size"][0])
    images = random_images(16, mode="L" if channels == 1 else "RGB", seed=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(as_input(images, [0.5] * channels, [0.25] * channels))
    return model.eval()


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    return timm.create_model("adder_lenet5.digits", pretrained=True).eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = random_network("adder_resnet20")
    path = tmp_path_factory.mktemp("resnet") / "resnet.pth"
    torch.save(model.state_dict(), path)
    return model, path


@torch.inference_mode()
def by_hand(model: nn.Module, seen: Sequence[Image.Image], names: Sequence[str]) -> list[list[tuple[str, float]]]:
    """All classes of each image, likeliest first: PIL's pixels, the tag's mean and deviation, numpy's softmax."""
    config = model.pretrained_cfg
    logits = model(as_input(seen, config["mean"], config["std"])).double().numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return [sorted(zip(names, row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in shares]


def assert_predicted(got: list[dict[str, Any]], expected: list[list[tuple[str, float]]], count: int = 5) -> None:
    assert len(got) == len(expected)
    for row, classes in zip(got, expected, strict=True):
        assert [entry["name"] for entry in row["classes"]] == [name for name, _ in classes[:count]]
        shares = [entry["probability"] for entry in row["classes"]]
        assert shares == pytest.approx([share for _, share in classes[:count]], rel=1e-3, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- the answers


def test_probabilities_are_those_of_a_pipeline_by_hand(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, lenet: nn.Module
) -> None:
    images = random_images(3, (20, 20), mode="L")
    files = [tmp_path / name for name in ("a.png", "b.bmp", "c.without_extension.png")]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    seen = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in images]
    got = predict(*DIGITS, *files)
    assert [row["file"] for row in got] == list(map(str, files))
    assert_predicted(got, by_hand(lenet, seen, "0123456789"))
    assert all(entry["name"] == str(entry["index"]) for row in got for entry in row["classes"])


def test_the_text_has_the_file_and_a_line_a_class(adderzoo: Command, tmp_path: Path, lenet: nn.Module) -> None:
    (image,) = random_images(1, mode="L")
    image.save(tmp_path / "a.png")
    ((first, second, *_),) = by_hand(lenet, [image], "0123456789")
    done = adderzoo(*DIGITS, tmp_path / "a.png", "--topk", 2)
    assert (done.status, done.err) == (0, "adderzoo predict: adder_lenet5.digits, published weights, on cpu\n")
    assert done.out.splitlines() == [
        str(tmp_path / "a.png"),
        f"{100 * first[1]:7.2f} %  {first[0]}",
        f"{100 * second[1]:7.2f} %  {second[0]}",
    ]


def test_an_image_that_is_not_square_is_resized_and_cropped_in_the_middle(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, resnet: tuple[nn.Module, Path]
) -> None:
    model, checkpoint = resnet
    (image,) = random_images(1, (96, 64))
    image.save(tmp_path / "a.png")
    seen = image.resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    got = predict("predict", tmp_path / "a.png", "--model", "adder_resnet20", "--checkpoint", checkpoint)
    assert_predicted(got, by_hand(model, [seen], [str(index) for index in range(10)]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_color_images_feed_a_network_of_one_channel(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, lenet: nn.Module, mode: str
) -> None:
    (image,) = random_images(1, mode=mode)
    image.save(tmp_path / "a.tiff")
    assert_predicted(predict(*DIGITS, tmp_path / "a.tiff"), by_hand(lenet, [image.convert("L")], "0123456789"))


@pytest.mark.parametrize("mode", ["L", "1", "RGBA"])
def test_images_of_other_modes_feed_a_network_of_three_channels(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, resnet: tuple[nn.Module, Path], mode: str
) -> None:
    model, checkpoint = resnet
    (image,) = random_images(1, mode=mode)
    image.save(tmp_path / "a.png")
    got = predict("predict", tmp_path / "a.png", "--model", "adder_resnet20", "--checkpoint", checkpoint)
    assert_predicted(got, by_hand(model, [image.convert("RGB")], [str(index) for index in range(10)]))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_a_photograph_is_seen_upright(
    predict: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    lenet: nn.Module,
    orientation: int,
    stored: Image.Transpose,
) -> None:
    (image,) = random_images(1, mode="L")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(stored).save(tmp_path / "a.png", exif=exif)
    image.transpose(stored).save(tmp_path / "b.png")
    upright, as_stored = by_hand(lenet, [image, image.transpose(stored)], "0123456789")
    assert upright[0][1] != pytest.approx(as_stored[0][1], abs=1e-4)
    assert_predicted(predict(*DIGITS, tmp_path / "a.png", tmp_path / "b.png"), [upright, as_stored])


def test_more_images_than_a_batch_are_predicted_in_order(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, lenet: nn.Module
) -> None:
    images = random_images(70, mode="L")
    folder = write_folder(tmp_path / "images", images, [0] * 70, classes=1)
    got = predict(*DIGITS, folder)
    assert [Path(row["file"]).name for row in got] == [f"{index:05d}.png" for index in range(70)]
    assert_predicted(got, by_hand(lenet, images, "0123456789"))


@pytest.mark.parametrize("topk", [1, 10, 1000])
def test_topk_classes_are_shown_or_all_there_are(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, lenet: nn.Module, topk: int
) -> None:
    (image,) = random_images(1, mode="L")
    image.save(tmp_path / "a.png")
    got = predict(*DIGITS, tmp_path / "a.png", "--topk", topk)
    assert len(got[0]["classes"]) == min(topk, 10)
    assert_predicted(got, by_hand(lenet, [image], "0123456789"), topk)


# ------------------------------------------------------------------------------------------------------------ the files


def test_a_folder_is_all_images_under_it_and_nothing_else(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    (image,) = random_images(1, mode="L")
    wanted = ["10.png", "deep/down/b.JPG", "2.jpeg", "1.webp"]
    for name in [*wanted, ".hidden.png", "deep/.cache/a.png", "deep/._a.png"]:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("text")
    image.save(tmp_path / "first.png")
    got = predict(*DIGITS, tmp_path / "first.png", tmp_path / "images", tmp_path / "first.png")
    expected = ["first.png", *(f"images/{name}" for name in ("1.webp", "2.jpeg", "10.png", "deep/down/b.JPG"))]
    assert [str(Path(row["file"]).relative_to(tmp_path)) for row in got] == [*expected, "first.png"]


def test_a_folder_that_is_hidden_itself_is_read(predict: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / ".images").mkdir()
    random_images(1)[0].save(tmp_path / ".images" / "a.png")
    assert len(predict(*DIGITS, tmp_path / ".images")) == 1


@pytest.mark.parametrize("json_argument", [(), ("--json", "-")])
def test_an_image_that_cannot_be_read_is_named_and_the_others_are_shown(
    adderzoo: Command, tmp_path: Path, json_argument: tuple[str, ...]
) -> None:
    images = random_images(2, mode="L")
    for name, image in zip(("a.png", "d.png"), images, strict=True):
        image.save(tmp_path / name)
    (tmp_path / "b.png").write_text("no image")
    images[0].resize((300, 300)).save(tmp_path / "whole.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    files = [tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.png")]
    done = adderzoo(*DIGITS, *files, *json_argument)
    assert done.status == 1
    line = done.err.splitlines()[-1]
    assert line.startswith(f"adderzoo predict: error: image {files[1]} cannot be read: ")
    assert f"; image {files[2]} cannot be read: " in line
    assert adderzoo(*DIGITS, files[0], files[3], *json_argument).out == done.out


# ---------------------------------------------------------------------------------------------------------- the classes


def save_lenet(path: Path, num: int, **metadata: str) -> nn.Module:
    model = random_network("adder_lenet5", num_classes=num)
    save_file(model.state_dict(), path, metadata)
    return model


def test_number_and_names_of_classes_come_from_the_checkpoint(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    names = ["cat", "dog, wet", "Größe"]
    checkpoint = tmp_path / "pets.safetensors"
    model = save_lenet(checkpoint, 3, architecture="adder_lenet5", num_classes="3", classes=json.dumps(names))
    images = random_images(4, mode="L")
    folder = write_folder(tmp_path / "images", images, [0] * 4, classes=1)
    arguments = ("predict", folder, "--model", "adder_lenet5", "--checkpoint", checkpoint)
    assert_predicted(predict(*arguments), by_hand(model, images, names))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert_predicted(predict(*arguments, "--class-names", tmp_path / "names.txt"), by_hand(model, images, "abc"))


def test_validate_takes_the_number_of_classes_from_the_checkpoint(adderzoo: Command, tmp_path: Path) -> None:
    model = save_lenet(tmp_path / "a.safetensors", 3, num_classes="3")
    images = random_images(9, mode="L")
    answers = [int(classes[0][0]) for classes in by_hand(model, images, "012")]
    labels = [answer if index < 6 else (answer + 1) % 3 for index, answer in enumerate(answers)]
    folder = write_folder(tmp_path / "images", images, labels, classes=3)
    arguments = ("validate", "--model", "adder_lenet5", "--data-dir", folder, "-j", 0, "--checkpoint")
    assert adderzoo(*arguments, tmp_path / "a.safetensors").out.startswith("top-1 66.67 ± 15.71 %, top-5 100.00 ")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert "is a checkpoint of another network" in adderzoo(*arguments, tmp_path / "a.pth").error
    assert adderzoo(*arguments, tmp_path / "a.pth", "--num-classes", 3).out.startswith("top-1 66.67 ± 15.71 %")


def test_a_checkpoint_without_metadata_needs_to_be_told_the_number_of_classes(
    adderzoo: Command, predict: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    model = save_lenet(tmp_path / "a.safetensors", 3)
    images = random_images(1, mode="L")
    images[0].save(tmp_path / "a.png")
    arguments = ("predict", tmp_path / "a.png", "--model", "adder_lenet5", "--checkpoint", tmp_path / "a.safetensors")
    assert "a.safetensors is a checkpoint of another network than adder_lenet5" in adderzoo(*arguments).error
    assert_predicted(predict(*arguments, "--num-classes", 3), by_hand(model, images, "012"))


@pytest.mark.parametrize(
    ("model", "names"), [("adder_resnet20", [*"0123456789"]), ("adder_resnet20.huawei_cifar10", CIFAR10)]
)
def test_another_checkpoint_has_the_class_names_of_a_tag_only_if_the_tag_is_named(
    predict: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    resnet: tuple[nn.Module, Path],
    model: str,
    names: list[str],
) -> None:
    (image,) = random_images(1)
    image.save(tmp_path / "a.png")
    network = timm.create_model(model).eval()
    network.load_state_dict(resnet[0].state_dict())
    got = predict("predict", tmp_path / "a.png", "--model", model, "--checkpoint", resnet[1])
    assert_predicted(got, by_hand(network, [image], names))


@pytest.mark.parametrize("count", [10, 12])
def test_published_weights_have_the_class_names_of_their_tag_if_they_are_as_many(
    predict: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    lenet: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    names = [f"digit {index}" for index in range(count)]
    create = timm.create_model

    def with_names(*args: Any, **kwargs: Any) -> nn.Module:
        return create(*args, **kwargs, pretrained_cfg_overlay={"label_names": names})

    monkeypatch.setattr(timm, "create_model", with_names)
    (image,) = random_images(1, mode="L")
    image.save(tmp_path / "a.png")
    got = predict(*DIGITS, tmp_path / "a.png")
    assert_predicted(got, by_hand(lenet, [image], names if count == 10 else "0123456789"))


def test_imagenets_classes_have_their_names(predict: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    random_images(1)[0].save(tmp_path / "a.png")
    arguments = ("predict", tmp_path / "a.png", "--checkpoint", tmp_path / "a.pth", "--topk", 1000, "--model")
    (row,) = predict(*arguments, "test_resnet.r160_in1k")
    names = {entry["index"]: entry["name"] for entry in row["classes"]}
    assert len(names) == 1000
    assert (names[0], names[999]) == ("tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue")
    (row,) = predict(*arguments, "test_resnet")
    assert all(entry["name"] == str(entry["index"]) for entry in row["classes"])


def test_random_weights_are_asked_for_and_said_to_be_random(adderzoo: Command, tmp_path: Path) -> None:
    random_images(1)[0].save(tmp_path / "a.png")
    done = adderzoo("predict", tmp_path / "a.png", "-m", "adder_resnet32", "--random-weights")
    assert (done.status, done.err) == (0, "adderzoo predict: adder_resnet32, random weights, on cpu\n")
    assert len(done.out.splitlines()) == 6
    refused = adderzoo("predict", tmp_path / "a.png", "-m", "adder_resnet32").error
    assert "model adder_resnet32 has no published weights: --checkpoint FILE" in refused


def test_a_network_for_other_images_has_their_channels_mean_and_deviation(
    adderzoo: Command, tmp_path: Path, predict: Callable[..., list[dict[str, Any]]]
) -> None:
    model = random_network("adder_lenet5", in_chans=3)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    images = random_images(2)
    folder = write_folder(tmp_path / "images", images, [0] * 2, classes=1)
    seen = as_input(images, [0.4, 0.5, 0.6], [0.2] * 3)
    with torch.no_grad():
        expected = model(seen).softmax(1)
    arguments = ("predict", folder, "-m", "adder_lenet5", "--checkpoint", tmp_path / "a.safetensors", "--in-chans", 3)
    got = predict(*arguments, "--mean", 0.4, 0.5, 0.6, "--std", 0.2, "--topk", 10)
    for row, shares in zip(got, expected, strict=True):
        found = {entry["index"]: entry["probability"] for entry in row["classes"]}
        assert [found[index] for index in range(10)] == pytest.approx(shares.tolist(), rel=1e-3, abs=1e-6)


def test_json_goes_to_a_file_beside_the_text(adderzoo: Command, tmp_path: Path) -> None:
    random_images(1)[0].save(tmp_path / "a.png")
    done = adderzoo(*DIGITS, tmp_path / "a.png", "--json", tmp_path / "a.json")
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row["file"] == str(tmp_path / "a.png") == done.out.splitlines()[0]
    assert done.out.splitlines()[1].endswith(f"%  {row['classes'][0]['name']}")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png",), "image nowhere.png does not exist"),
        (("a.png", "nowhere.png"), "image nowhere.png does not exist"),
        (("empty",), "folder empty has no images"),
        (("a.png", "--topk", "0"), "topk must be at least 1, got 0"),
        (("a.png", "--num-classes", "0"), "num-classes must be at least 1, got 0"),
        (("a.png", "--device", "abacus"), "device 'abacus' cannot be used"),
        (("a.png", "--model", "lenet"), "model must be a registered network, got 'lenet'"),
        (("a.png", "--class-names", "nine.txt"), "class-names nine.txt has 9 class names, the network 10 classes"),
        (("a.png", "--class-names", "nowhere.txt"), "nowhere.txt"),
        (("a.png", "--class-names", "a.png"), "class-names a.png is no text in UTF-8"),
        (("a.png", "--class-names", "empty"), "empty"),
        (("a.png", "--checkpoint", "nowhere.safetensors"), "nowhere.safetensors is not a file"),
        (("a.png", "--checkpoint", "text.safetensors"), "text.safetensors is not a valid safetensors file"),
        (("a.png", "--checkpoint", "many.safetensors"), "its metadata num_classes is wrong: it must be a number"),
        (("a.png", "--checkpoint", "two.safetensors"), "two.safetensors has 2 class names, the network 3 classes"),
        (("a.png", "--checkpoint", "no_json.safetensors"), "its metadata classes is wrong: Expecting"),
        (("a.png", "--checkpoint", "object.safetensors"), "its metadata classes is wrong: it must be a list of names"),
        (("a.png", "--checkpoint", "two.safetensors", "--num-classes", "4"), "is a checkpoint of another network"),
        (("a.png", "--checkpoint", "two.safetensors", "--model", "cnn_resnet20"), "is a checkpoint of another network"),
    ],
)
def test_bad_input_is_one_line(
    adderzoo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    random_images(1)[0].save("a.png")
    Path("empty").mkdir()
    Path("nine.txt").write_text("name\n" * 9)
    Path("text.safetensors").write_text("text")
    for name, metadata in {
        "many": {"num_classes": "many"},
        "two": {"num_classes": "3", "classes": '["a", "b"]'},
        "no_json": {"num_classes": "3", "classes": "a, b, c"},
        "object": {"num_classes": "3", "classes": "{}"},
    }.items():
        if f"{name}.safetensors" in arguments:
            save_lenet(Path(f"{name}.safetensors"), 3, **metadata)
    model = () if "--model" in arguments else ("--model", "adder_lenet5")
    done = adderzoo("predict", *arguments, *model)
    error = done.err.splitlines()[-1]
    assert (done.status, done.out) == (1, "")
    assert error.startswith("adderzoo predict: error: ")
    assert message in error


def test_an_image_of_absurd_size_is_refused_by_name(adderzoo: Command, tmp_path: Path) -> None:
    random_images(1, mode="L")[0].save(tmp_path / "bomb.png")
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    (tmp_path / "bomb.png").write_bytes(bytes(data))
    done = adderzoo(*DIGITS, tmp_path / "bomb.png")
    assert done.status == 1
    assert f"error: image {tmp_path / 'bomb.png'} cannot be read: " in done.err
