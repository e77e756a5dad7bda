"""torchvision's detectors on networks of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from adderzoo.detection import BackboneWithFPN, fcos, fpn_backbone
from adderzoo.files.weights import save_weights
from adderzoo.layers import Adder2d
from adderzoo.optim import adaptive_lr

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {"widths": (4, 8, 8, 16)}
COLORS = torch.eye(3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rectangles(count: int, size: int = 64) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of noise, each with a rectangle of pure red, green or blue; labels are 1, 2 and 3."""
    images, targets = [], []
    for _ in range(count):
        image = torch.rand(3, size, size)
        width, height = torch.randint(size // 4, size // 2, (2,)).tolist()
        x, y = int(torch.randint(size - width, ())), int(torch.randint(size - height, ()))
        color = int(torch.randint(3, ()))
        image[:, y : y + height, x : x + width] = COLORS[color, :, None, None]
        images.append(image)
        boxes = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
        targets.append({"boxes": boxes, "labels": torch.tensor([color + 1])})
    return images, targets


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def narrow_fcos() -> Any:
    """Of 64 channels, since torchvision's GroupNorm takes no 32 groups of a single number."""
    return fcos(fpn_backbone("adder_resnet18", out_channels=64, **NARROW), num_classes=4, min_size=64)


@pytest.mark.parametrize("name", ["adder_resnet18", "cnn_resnet18", "adder_resnet50", "cnn_resnet50"])
def test_the_pyramid_is_that_of_torchvision(name: str) -> None:
    network, more = name.partition("_")[2], LastLevelP6P7(256, 256)
    with torch.device("meta"), torch.no_grad():  # shapes are all that matters
        theirs = resnet_fpn_backbone(backbone_name=network, weights=None, returned_layers=[2, 3, 4], extra_blocks=more)
        ours = fpn_backbone(name)
        image = torch.empty(1, 3, 800, 1344)
        expected, pyramid = theirs.eval()(image), ours.eval()(image)
    assert shapes(ours.fpn.state_dict()) == shapes(theirs.fpn.state_dict())
    assert list(pyramid) == list(expected)
    assert shapes(pyramid) == shapes(expected)
    assert ours.out_channels == theirs.out_channels


def test_a_pyramid_over_more_levels() -> None:
    body = timm.create_model("adder_resnet18", features_only=True, out_indices=(1, 2, 3, 4), **NARROW)
    backbone = BackboneWithFPN(body, out_channels=8)
    pyramid = backbone(torch.randn(2, 3, 128, 128))
    assert backbone.strides == (4, 8, 16, 32, 64, 128)
    assert [tuple(level.shape) for level in pyramid.values()] == [(2, 8, *(128 // s,) * 2) for s in backbone.strides]


def test_anchors_and_normalization_are_those_of_the_backbone() -> None:
    model: Any = fcos(fpn_backbone("adder_resnet20.cifar10", pretrained=True, out_channels=32), 2)
    assert model.anchor_generator.sizes == ((1,), (2,), (4,), (8,), (16,))
    cfg = timm.get_pretrained_cfg("adder_resnet20.cifar10")
    assert (tuple(model.transform.image_mean), tuple(model.transform.image_std)) == (cfg.mean, cfg.std)
    assert cfg.mean != timm.get_pretrained_cfg("adder_resnet18").mean  # torchvision's default is ImageNet's


def test_what_the_caller_sets_goes_before() -> None:
    model: Any = fcos(
        fpn_backbone("adder_resnet18", out_channels=32, **NARROW), 2, image_mean=[0, 0, 0], score_thresh=0.5
    )
    assert (model.transform.image_mean, model.score_thresh) == ([0, 0, 0], 0.5)


def test_the_loss_falls_with_batchnorm_in_training_mode() -> None:
    model = narrow_fcos().train()
    optimizer = adaptive_lr(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), eta=0.2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.weight.detach().clone()) for norm in norms]
    losses = []
    for _ in range(30):
        loss = sum(model(*rectangles(4)).values())
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    # Of every layer, statistics and parameters move.
    assert len(norms) == 20
    for norm, (mean, weight) in zip(norms, before, strict=True):
        assert not torch.equal(norm.running_mean, mean)
        assert not torch.equal(norm.weight, weight)
    model.eval()
    with torch.inference_mode():
        (prediction,) = model([torch.rand(3, 48, 80)])
    assert prediction.keys() == {"boxes", "scores", "labels"}
    assert all(value.isfinite().all() for value in prediction.values())


@pytest.mark.parametrize("pretrained", [False, True])
def test_nothing_is_frozen(pretrained: bool) -> None:
    # Of torchvision's own detectors, the ones with a pretrained backbone are.
    name = "adder_resnet20.cifar10" if pretrained else "adder_resnet18"
    model = fcos(fpn_backbone(name, pretrained, out_channels=32), 2)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.training and norm.track_running_stats for norm in norms)


def test_gradients_reach_the_filters_which_have_the_adaptive_rate() -> None:
    model = narrow_fcos().train()
    filters = [module.weight for module in model.modules() if isinstance(module, Adder2d)]
    assert len(filters) == 19
    optimizer = adaptive_lr(torch.optim.SGD(model.parameters(), lr=0.5), eta=0.2)
    sum(model(*rectangles(2)).values()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in filters)
    before = [weight.detach().clone() for weight in filters]
    optimizer.step()
    for weight, old in zip(filters, before, strict=True):
        # Eq. 12 and 13 of "AdderNet" (CVPR 2020): a step of rate * eta, as a root mean square.
        assert (weight - old).pow(2).mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=1e-4)


def test_retinanet_takes_the_backbone() -> None:
    model = RetinaNet(fpn_backbone("adder_resnet18", out_channels=32, **NARROW), num_classes=4, min_size=64)
    losses = model.train()(*rectangles(2))
    sum(losses.values()).backward()
    assert all(map(torch.isfinite, losses.values()))
    assert all(m.weight.grad.abs().sum() > 0 for m in model.modules() if isinstance(m, Adder2d))


def assert_same_weights(body: nn.Module, expected: nn.Module) -> None:
    weights = expected.state_dict()
    assert body.state_dict().keys() <= weights.keys()
    assert len(body.state_dict()) >= len(weights) - 7  # classifier, BatchNorm on the logits
    for key, value in body.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_published_weights() -> None:
    backbone = fpn_backbone("adder_resnet20.cifar10", pretrained=True, out_channels=8)
    assert_same_weights(backbone.body, timm.create_model("adder_resnet20.cifar10", pretrained=True))


@pytest.mark.parametrize("format", ["safetensors", "pth"])
def test_the_weights_of_a_checkpoint(tmp_path: Path, format: str) -> None:
    """With their number of classes, arguments and preprocessing, which are none of torchvision's business."""
    classifier = timm.create_model("adder_resnet18", num_classes=7, **NARROW)
    path, arguments = tmp_path / f"classifier.{format}", {}
    if format == "safetensors":
        said = {
            "architecture": "adder_resnet18",
            "num_classes": "7",
            "model_args": '{"widths": [4, 8, 8, 16]}',
            "data_config": '{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}',
        }
        save_weights(classifier, path, said)
    else:
        torch.save(classifier.state_dict(), path)
        arguments = NARROW
    checkpoint = path if format == "safetensors" else str(path)
    backbone = fpn_backbone("adder_resnet18", checkpoint=checkpoint, out_channels=32, **arguments)
    assert_same_weights(backbone.body, classifier)
    model: Any = fcos(backbone, 2)
    assert model.transform.image_mean == ([0.1, 0.2, 0.3] if format == "safetensors" else [0.485, 0.456, 0.406])


def test_a_detector_is_saved_and_loaded() -> None:
    model, other = narrow_fcos().eval(), narrow_fcos()
    other.load_state_dict(model.state_dict())
    images, _ = rectangles(1)
    model.score_thresh = other.score_thresh = 0.0
    with torch.inference_mode():
        (expected,), (got,) = model(images), other.eval()(images)
    assert len(expected["boxes"]) > 0
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    """An adder network and its CNN have the same shapes, and timm would load either."""
    path = tmp_path / "cnn.safetensors"
    cnn = timm.create_model("cnn_resnet18", **NARROW)
    save_weights(cnn, path, {"architecture": "cnn_resnet18", "model_args": '{"widths": [4, 8, 8, 16]}'})
    with pytest.raises(ValueError, match=r"cnn\.safetensors is a checkpoint of another network than adder_resnet18"):
        fpn_backbone("adder_resnet18", checkpoint=path)
    with pytest.raises(ValueError, match="of another shape"):
        fpn_backbone("cnn_resnet18", checkpoint=path, widths=(4, 8, 8, 32))
    with pytest.raises(ValueError, match="is not a file"):
        fpn_backbone("adder_resnet18", checkpoint=tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="checkpoint must be None with pretrained=True"):
        fpn_backbone("adder_resnet20.cifar10", pretrained=True, checkpoint=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adder_resnet19"}, "model must be a registered network, got 'adder_resnet19'"),
        ({"name": "adder_resnet18", "pretrained": True}, "model 'adder_resnet18' cannot be created: No pretrained"),
        ({"name": "adder_edsr_small_x2"}, "features_only must be False for adder_edsr_small_x2"),
        ({"name": "adder_resnet18", "out_channels": 0}, "out_channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fpn_backbone(**arguments)


def test_a_detector_needs_a_class_beside_the_background() -> None:
    backbone = fpn_backbone("adder_resnet18", out_channels=8, **NARROW)
    with pytest.raises(ValueError, match="num_classes must be at least 2, one of them the background, got 1"):
        fcos(backbone, num_classes=1)


def test_the_head_of_fcos_normalizes_groups_of_channels() -> None:
    backbone = fpn_backbone("adder_resnet18", out_channels=48, **NARROW)
    with pytest.raises(ValueError, match="backbone must have out_channels divisible by 32, got 48"):
        fcos(backbone, num_classes=2)
    fcos(backbone, num_classes=2, head=nn.Identity())
