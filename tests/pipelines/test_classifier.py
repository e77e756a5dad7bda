"""adderzoo.Classifier: the same image in every form has the result of timm's own pipeline by hand."""

import io
import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pictures import random_images, write_folder
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import adderzoo
from adderzoo.cli import main
from adderzoo.pipelines import Prediction

pytestmark = pytest.mark.usefixtures("one_thread")

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def lenet() -> adderzoo.Classifier:
    return adderzoo.Classifier("adder_lenet5.digits", device="cpu")


@pytest.fixture(scope="module")
def resnet() -> adderzoo.Classifier:
    return adderzoo.Classifier("adder_resnet20.cifar10", device="cpu", batch_size=3)


@torch.inference_mode()
def by_timm(name: str, images: list[Image.Image], mode: str = "RGB") -> torch.Tensor:
    """Probabilities (N, classes): create_model, create_transform, softmax."""
    model = timm.create_model(name, pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    return model(torch.stack([transform(image.convert(mode)) for image in images])).softmax(1)


def shares(prediction: Prediction) -> list[float]:
    """By the classes' indices."""
    return [each.probability for each in sorted(prediction.classes, key=lambda each: each.index)]


def near(got: list[Prediction], expected: torch.Tensor) -> bool:
    """But for rounding: a network that is fused adds up in another order."""
    return torch.allclose(torch.tensor([*map(shares, got)]), expected, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- results


def test_probabilities_are_those_of_timms_pipeline(resnet: adderzoo.Classifier, tmp_path: Path) -> None:
    images = [*random_images(4, (48, 40)), *random_images(3, (32, 32), seed=1)]
    expected = by_timm("adder_resnet20.cifar10", images)
    predictions = resnet(images, topk=10)
    assert near(predictions, expected)
    assert [each.index for each in predictions] == expected.argmax(1).tolist()
    assert [each.name for each in predictions] == [CIFAR10[index] for index in expected.argmax(1)]
    assert [each.probability for each in predictions] == [each.classes[0].probability for each in predictions]
    for each in predictions:
        values = [entry.probability for entry in each.classes]
        assert values == sorted(values, reverse=True)
    unfused = adderzoo.Classifier("adder_resnet20.cifar10", device="cpu", fuse=False)
    assert not isinstance(unfused.model, torch.fx.GraphModule)
    assert near(unfused(images, topk=10), expected)


def test_one_image_is_one_prediction_that_prints_itself(resnet: adderzoo.Classifier, tmp_path: Path) -> None:
    (image,) = random_images(1, (32, 32))
    image.save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    prediction = resnet(path, topk=2)
    first, second = prediction.classes
    assert str(prediction).splitlines() == [
        path,
        f"{100 * first.probability:7.2f} %  {first.name}",
        f"{100 * second.probability:7.2f} %  {second.name}",
    ]
    row = json.loads(json.dumps(prediction.as_dict()))
    assert row["file"] == path
    assert row["classes"][0] == {"index": first.index, "name": first.name, "probability": first.probability}
    assert resnet(image).file is None
    assert "adder_resnet20.cifar10" in repr(resnet)


def test_the_commands_json_is_the_same(lenet: adderzoo.Classifier, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", random_images(5, mode="L"), [0] * 5, classes=1)
    assert main(["predict", str(folder), "-m", "adder_lenet5.digits", "--json", str(tmp_path / "rows.json")]) == 0
    assert [each.as_dict() for each in lenet([folder])] == json.loads((tmp_path / "rows.json").read_text())


# --------------------------------------------------------------------------------------------------------------- forms


def forms(image: Image.Image, folder: Path) -> Iterator[tuple[str, Any]]:
    """An image of 8 bits in all forms that it may have."""
    image.save(folder / "a.png")
    pixels = np.array(image)
    channels = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    one = channels[None]  # what the four dimensions say, three may not
    content = (folder / "a.png").read_bytes()
    yield from {
        "str": str(folder / "a.png"),
        "Path": folder / "a.png",
        "PIL": image,
        "PIL of a file": Image.open(folder / "a.png"),
        "PIL of bytes": Image.open(io.BytesIO(content)),
        "array": pixels,
        "array of 16 bits": pixels.astype(np.uint16) * 257,
        "array of float64": pixels / 255,
        "strided array": np.repeat(pixels, 2, 0)[::2],
        "read-only array": np.asarray(image),
        "tensor": one,
        "tensor of float32": one / 255,
        "tensor of float64": one.double() / 255,
        "channels_last tensor": one.contiguous(memory_format=torch.channels_last),
        "tensor with gradients": (one / 255).requires_grad_(),
        "list": [image],
        "nested list": [(str(folder / "a.png"),)],
        "generator": (each for each in [pixels]),
        "folder": [folder],
    }.items()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_the_same_image_has_the_same_result_in_every_form(
    name: str, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    classifier = request.getfixturevalue(name)
    (image,) = random_images(1, (33, 31), mode="RGBA")
    results = {form: classifier(value) for form, value in forms(image.convert(mode), tmp_path)}
    results = {form: value if isinstance(value, Prediction) else value[0] for form, value in results.items()}
    for form, result in results.items():
        assert result.classes == results["str"].classes, form


def test_three_dimensions_of_a_tensor_are_one_image(resnet: adderzoo.Classifier) -> None:
    (image,) = random_images(1, (20, 30))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert resnet(tensor) == resnet(image)
    batch = torch.stack([tensor, tensor.flip(2)])
    assert resnet(batch) == [resnet(image), resnet(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    assert resnet(batch.movedim(1, -1).numpy()) == resnet(batch)
    assert resnet([]) == resnet(batch[:0]) == []


@pytest.mark.parametrize("kind", ["16 bits", "gray of 16 bits", "EXIF", "palette", "CMYK"])
def test_what_pil_has_opened_is_read_as_the_file_is(resnet: adderzoo.Classifier, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    (image,) = random_images(1, (40, 30))
    if kind == "16 bits":
        pixels = np.random.default_rng(0).integers(0, 65536, (40, 30, 3), dtype=np.uint16)
        adderzoo.data.photos.write_photo(
            adderzoo.data.photos.Photo(torch.from_numpy(pixels.astype(np.uint16).transpose(2, 0, 1).copy())), path
        )
    elif kind == "gray of 16 bits":
        Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 30), dtype=np.uint16)).save(path)
    elif kind == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    elif kind == "palette":
        image.convert("P").save(path)
    else:
        path = tmp_path / "a.tif"
        image.convert("CMYK").save(path)
    expected = resnet(path).classes
    assert resnet(Image.open(path)).classes == expected
    assert resnet(Image.open(io.BytesIO(path.read_bytes()))).classes == expected
    if kind != "16 bits":  # of which PIL keeps the upper halves
        loaded = Image.open(path)
        loaded.load()
        assert resnet(loaded).classes == expected
    if kind == "EXIF":
        assert resnet(np.array(image.transpose(Image.Transpose.ROTATE_270))).classes == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(32, 32, 3), r"with 1 to 4 channels, got \(32, 32, 3\); .movedim\(-1, -3\) makes one of what"),
        (np.zeros((3, 32, 32)), r"with 1 to 4 channels, got \(3, 32, 32\); numpy.moveaxis\(..., -3, -1\) makes one"),
        (torch.zeros(2, 32, 32, 3), r"got \(2, 32, 32, 3\); .movedim"),
        (torch.zeros(3, 9, 3), r"images of shape \(3, 9, 3\) may have its channels first or last: \(1, C, H, W\) says"),
        (np.zeros((3, 9, 3)), r"images of shape \(3, 9, 3\) may have its channels first or last: \(1, H, W, C\) says"),
        (torch.zeros(3, 28, 28), "may be one image of 3 channels or 3 gray ones"),
        (torch.zeros(8, 28, 28), r"got \(8, 28, 28\); of gray images, list\(images\) or \(N, 1, H, W\)"),
        (np.zeros((8, 28, 28)), r"got \(8, 28, 28\); of gray images, list\(images\) or \(N, H, W, 1\)"),
        (torch.zeros(28, 28), r"must be a tensor \(C, H, W\) or \(N, C, H, W\), with 1 to 4 channels, got \(28, 28\)"),
        (np.zeros(5), r"must be an array \(H, W\), \(H, W, C\) or \(N, H, W, C\)"),
        (np.zeros((0, 5)), r"images must have pixels, got \(0, 5\)"),
        ([np.full((5, 5), 0.5), np.full((5, 5), 200.0)], r"images\[1\] must be in \[0, 1\], .* got 200 to 200"),
        (torch.full((1, 5, 5), -0.1), r"images must be in \[0, 1\], .* got -0.1 to -0.1"),
        (np.full((5, 5), np.nan), "got nan to nan"),
        (np.zeros((5, 5), np.int64), r"images must be uint8, uint16 or float in \[0, 1\], got int64"),
        (torch.zeros(1, 5, 5, dtype=torch.bool), "got bool"),
        ([[np.zeros((5, 5)), 3]], r"images\[0\]\[1\] must be a path, a PIL image, an array, a tensor, .* got int"),
        (b"\x89PNG", "must be a path, .* got bytes"),
        ({"a.png": 1}, "got dict"),
        ("missing.png", "image missing.png does not exist"),
        (".", r"images must be a file, got the folder .: \[folder\] is all images under it"),
        (Image.new("F", (5, 5)), "images cannot be read: its pixels are floating point"),
    ],
)
def test_what_may_mean_something_else_is_refused(lenet: adderzoo.Classifier, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lenet(images)
    with pytest.raises(ValueError, match=message):
        lenet.features(images)


# ----------------------------------------------------------------------------------------------------------- streaming


def test_a_stream_reads_no_further_than_it_is_asked_to(lenet: adderzoo.Classifier) -> None:
    seen = []

    def camera() -> Iterator[Image.Image]:
        for index in count():
            seen.append(index)
            yield Image.new("L", (32, 32), index % 256)

    lenet.batch_size = 4
    frames = list(islice(lenet.stream(camera()), 6))
    assert len(frames) == 6
    assert len(seen) == 8
    lenet.batch_size = 32
    assert frames[5] == lenet(Image.new("L", (32, 32), 5))


def test_an_image_that_cannot_be_read_can_be_left_out(lenet: adderzoo.Classifier, tmp_path: Path) -> None:
    (image,) = random_images(1, mode="L")
    (tmp_path / "bad.png").write_text("no image")
    errors: list[ValueError] = []
    got = list(lenet.stream([image, tmp_path / "bad.png", image], failed=errors.append))
    assert got == [lenet(image)] * 2
    assert f"image {tmp_path / 'bad.png'} cannot be read" in str(*errors)
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        lenet([image, tmp_path / "bad.png"])


# ---------------------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("name", ["adder_lenet5.digits", "adder_resnet20.cifar10", "cnn_resnet20.cifar10"])
def test_features_are_what_timm_calls_pre_logits(name: str) -> None:
    images = random_images(5, (32, 32), mode="L" if "lenet" in name else "RGB")
    model = timm.create_model(name, pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    with torch.inference_mode():
        x = torch.stack([transform(image) for image in images])
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    for fuse in (True, False):
        classifier = adderzoo.Classifier(name, device="cpu", batch_size=2, fuse=fuse)
        got = classifier.features(images)
        assert got.shape == (5, model.num_features)
        assert got.dtype == torch.float32
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)
        unit = classifier.features(images, normalize=True)
        assert torch.allclose(unit, expected / expected.norm(dim=1, keepdim=True), atol=1e-3)
        assert classifier.features(images[0]).shape == (1, model.num_features)
        assert classifier.features([]).shape == (0, model.num_features)


# ------------------------------------------------------------------------------------------------------------ networks


def test_files_folders_and_quantized_networks(tmp_path: Path) -> None:
    images = random_images(8, (32, 32), mode="L")
    names = [f"digit {index}" for index in range(10)]
    model = timm.create_model("adder_lenet5.digits", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    batch = torch.stack([transform(image) for image in images])
    (tmp_path / "run").mkdir()
    adderzoo.save(model, tmp_path / "run" / "model.safetensors", {"classes": json.dumps(names)})
    integers = adderzoo.quantize(adderzoo.calibrate(model, [batch]))
    adderzoo.save(integers, tmp_path / "u8.safetensors", {"classes": json.dumps(names)})
    with torch.inference_mode():
        expected = model(batch).softmax(1)
        of_bytes = integers(batch).softmax(1)
        embedded = model.forward_head(model.forward_features(batch), pre_logits=True)
    for where in (tmp_path / "run", str(tmp_path / "run" / "model.safetensors")):
        classifier = adderzoo.Classifier(where, device="cpu")
        assert classifier.class_names == names
        assert near(classifier(images, topk=10), expected)
    assert near(adderzoo.Classifier("adder_lenet5", checkpoint=tmp_path / "run", device="cpu")(images, 10), expected)
    classifier = adderzoo.Classifier(tmp_path / "u8.safetensors", device="cpu")
    assert near(classifier(images, topk=10), of_bytes)
    assert classifier(images[0]).name == names[int(of_bytes[0].argmax())]
    # Of bytes, whose steps are 1/255 of a layer's range.
    similar = torch.cosine_similarity(classifier.features(images), embedded)
    assert similar.min() > 0.99


class Own(nn.Module):
    """Logits that say how bright the upper and the lower half are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 8, 8)
        return x.mean((1, 3)).view(-1, 2, 4).mean(2)


def test_a_network_of_ones_own_has_its_configuration_and_names() -> None:
    config = {"input_size": (3, 8, 8), "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    own = Own().train()
    classifier = adderzoo.Classifier(own, class_names=["up", "down"], data_config=config, device="cpu")
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    # (1 - 0.5) / 0.25 against -0.5 / 0.25
    assert classifier(pixels).probability == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-5)
    assert classifier(pixels).name == "up"
    assert own.training
    with pytest.raises(ValueError, match="features must be those of a network with timm's forward_features"):
        classifier.features(pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": "adder_resnet32"},
            "adder_resnet32 has no published weights: checkpoint=FILE gives it other weights, random_weights=True",
        ),
        ({"model": "adder_lenet5.digits", "in_chans": 0}, "in_chans must be at least 1, got 0"),
        ({"model": "adder_lenet5.digits", "num_classes": 3}, "num_classes must be 10, for which the weights of"),
        ({"model": "adder_resnet21"}, "model must be a registered network, got 'adder_resnet21'"),
        ({"model": "nowhere/best.safetensors"}, "there is no file nowhere/best.safetensors"),
        ({"model": "adder_edsr_small_x2.bsds400"}, "must be a classifier"),
        ({"model": Own()}, "class_names must be given: a Own does not say how many classes it has"),
        ({"model": Own(), "checkpoint": "a.pth"}, "a network that is made already takes no checkpoint"),
        ({"class_names": ["a"]}, "class_names has 1 class names, the network 10 classes"),
        ({"class_names": "0123456789"}, "class_names must be several names, got the text '0123456789'"),
        ({"data_config": {"meen": 0.5}}, "data_config must have input_size, .* got meen"),
        ({"data_config": {"std": [0.0]}}, "data_config cannot be used: std must be a list of numbers from"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adderzoo.Classifier(**{"model": "adder_lenet5.digits", **arguments})


def test_a_file_that_names_no_network_has_to_be_the_checkpoint_of_one(tmp_path: Path) -> None:
    torch.save(timm.create_model("adder_lenet5").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"does not say of which network .+: pass model=NAME and checkpoint=.+a\.pth"):
        adderzoo.Classifier(tmp_path / "a.pth")


def test_random_weights_are_asked_for() -> None:
    classifier = adderzoo.Classifier("adder_resnet32", random_weights=True, num_classes=3, device="cpu")
    assert classifier.class_names == ["0", "1", "2"]
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        classifier(random_images(1)[0], topk=0)
