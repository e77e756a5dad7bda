from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adderzoo.engine import Epoch
from adderzoo.engine.curves import draw_curves

GRAY, BLUE = (0x8C, 0x8C, 0x8C), (0x00, 0x72, 0xB2)


def epoch(number: int, validated: bool, loss: float = 1.0) -> Epoch:
    top1 = 10.0 * number
    found = {"eval_loss": loss, "eval_top1": top1, "eval_top1_se": 1.0, "eval_top5": 100.0} if validated else {}
    return Epoch(epoch=number, train_loss=1 / number, train_top1=top1, **found, lr=0.1 / number, seconds=1.0)


def pixels(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 300
        return int((np.asarray(image.convert("RGB")) == color).all(2).sum())


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("validated", [False, True])
def test_curves_show_training_and_where_there_is_one_validation(tmp_path: Path, count: int, validated: bool) -> None:
    path = tmp_path / "new" / "curves.png"
    draw_curves([epoch(number + 1, validated) for number in range(count)], path, "some network")
    assert pixels(path, GRAY) > 20
    assert (pixels(path, BLUE) > 20) == validated


def test_a_loss_that_is_not_finite_leaves_the_other_curves(tmp_path: Path) -> None:
    draw_curves([epoch(number, True, float("nan")) for number in (1, 2, 3)], tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png", BLUE) > 20


@pytest.mark.parametrize("validated", [False, True])
def test_super_resolution_has_psnr_in_the_place_of_accuracy(
    tmp_path: Path, validated: bool, recwarn: pytest.WarningsRecorder
) -> None:
    found = {"eval_psnr": 30.0, "eval_ssim": 0.9} if validated else {}
    history = [Epoch(epoch=number, train_loss=1 / number, **found, lr=0.1, seconds=1.0) for number in (1, 2, 3)]
    draw_curves(history, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png", GRAY) > 50  # the loss
    assert (pixels(tmp_path / "curves.png", BLUE) > 50) == validated
    assert not recwarn.list
