import math

import numpy as np
import pytest
import torch
from torch import nn

from adderzoo.data import Loading
from adderzoo.engine import Execution, Result, evaluate

Batch = tuple[torch.Tensor, torch.Tensor]


class Logits(nn.Module):
    """Its images are the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def batches(logits: torch.Tensor, labels: list[int], sizes: list[int]) -> list[Batch]:
    images = logits[:, :, None, None]
    return list(zip(images.split(sizes), torch.tensor(labels).split(sizes), strict=True))


def ranked(ranks: list[int], classes: int = 10) -> tuple[torch.Tensor, list[int]]:
    """Logits for which class 0 has these ranks, and the labels, all 0."""
    descending = torch.arange(classes, 0, -1.0)
    rows = [torch.cat((descending[rank : rank + 1], descending[:rank], descending[rank + 1 :])) for rank in ranks]
    return torch.stack(rows), [0] * len(ranks)


def test_top1_and_top5_count_the_ranks_of_the_labels() -> None:
    logits, labels = ranked([0, 0, 0, 1, 4, 4, 5, 9])
    result = evaluate(Logits(), batches(logits, labels, [3, 3, 2]))
    assert (result.top1, result.top5, result.images) == (100 * 3 / 8, 100 * 6 / 8, 8)


def test_standard_errors_are_those_of_a_binomial_share() -> None:
    logits, labels = ranked([0, 0, 0, 1, 4, 4, 5, 9])
    result = evaluate(Logits(), batches(logits, labels, [8]))
    assert result.top1_se == pytest.approx(100 * math.sqrt(3 / 8 * 5 / 8 / 8), rel=1e-12)
    assert result.top5_se == pytest.approx(100 * math.sqrt(6 / 8 * 2 / 8 / 8), rel=1e-12)
    # The same, from the spread of the single results.
    assert result.top1_se == pytest.approx(100 * np.std([1, 1, 1, 0, 0, 0, 0, 0]) / np.sqrt(8), rel=1e-12)


def test_standard_error_of_a_perfect_result_is_zero() -> None:
    logits, labels = ranked([0, 0])
    result = evaluate(Logits(), batches(logits, labels, [2]))
    assert (result.top1, result.top1_se, result.top5_se) == (100, 0, 0)


def test_loss_is_the_mean_cross_entropy_of_images_not_of_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 10) * 3, [0, 1, 2, 3, 4, 5, 6]
    result = evaluate(Logits(), batches(logits, labels, [5, 2]))
    values = logits.double().numpy()
    expected = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(values, labels, strict=True)])
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_with_fewer_than_five_classes_all_are_among_the_top5() -> None:
    logits, labels = ranked([0, 1, 2], classes=3)
    result = evaluate(Logits(), batches(logits, labels, [3]))
    assert (result.top1, result.top5) == (pytest.approx(100 / 3), 100)


@pytest.mark.parametrize("sizes", [[8], [3, 3, 2], [5, 3], [1] * 8])
def test_images_caps_what_counts_wherever_the_batches_end(sizes: list[int]) -> None:
    logits, labels = ranked([0, 0, 1, 9, 5, 0, 0, 0])  # the last three are padding
    capped = evaluate(Logits(), batches(logits, labels, sizes), images=5)
    alone = evaluate(Logits(), batches(logits[:5], labels[:5], [5]))
    assert (capped.top1, capped.top5, capped.images) == (40, 60, 5)
    assert (capped.top1_se, capped.top5_se) == (alone.top1_se, alone.top5_se)
    assert capped.loss == pytest.approx(alone.loss, rel=1e-6)


@pytest.mark.parametrize("images", [None, 0])
def test_no_images_are_a_value_error(images: int | None) -> None:
    logits, labels = ranked([0, 0])
    loader = [] if images is None else batches(logits, labels, [2])
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate(Logits(), loader, images=images)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_the_network_does_not_know_is_a_value_error(label: int) -> None:
    logits, _ = ranked([0, 0])
    with pytest.raises(ValueError, match=f"among the network's 10 classes, got {min(label, 0)} to {max(label, 0)}"):
        evaluate(Logits(), batches(logits, [0, label], [2]))


def test_the_network_is_put_into_evaluation_mode_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loader = [(torch.randn(16, 1, 1, 1), torch.zeros(16, dtype=torch.long))]
    results = [evaluate(model.train(), loader) for _ in range(2)]
    assert not any(module.training for module in model.modules())
    assert results[0].loss == results[1].loss
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_gradients_are_recorded() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x.flatten(1))
            self.recorded = y.requires_grad
            return y

    model = Scaled(10, 10)
    logits, labels = ranked([0, 0])
    evaluate(model, batches(logits, labels, [2]))
    assert not model.recorded


def test_channels_last_feeds_the_images_in_that_format() -> None:
    class Formats(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.channels_last = x.is_contiguous(memory_format=torch.channels_last)
            return x.mean((2, 3))

    model, loader = Formats(), [(torch.randn(2, 3, 4, 4), torch.tensor([0, 1]))]
    plain = evaluate(model, loader)
    assert not model.channels_last
    assert evaluate(model, loader, Execution(channels_last=True)).loss == pytest.approx(plain.loss, rel=1e-6)
    assert model.channels_last


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp_runs_under_autocast_and_counts_in_float32(dtype: torch.dtype) -> None:
    class Linear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x.flatten(1))
            self.seen = y.dtype
            return y

    torch.manual_seed(0)
    model, images = Linear(8, 10), torch.randn(64, 8, 1, 1)
    loader = [(images, torch.arange(64) % 10)]
    result = evaluate(model, loader, Execution(amp_dtype=dtype))
    assert model.seen == dtype
    with torch.autocast("cpu", dtype), torch.inference_mode():
        logits = model(images).double()
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, loader[0][1])), rel=1e-6)


def test_the_progress_bar_shows_the_description_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logits, labels = ranked([0, 0, 1, 1])
    evaluate(Logits(), batches(logits, labels, [2, 2]), description="some network")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "some network" in captured.err
    assert "top-1 50.00 %" in captured.err


def test_a_result_reads_as_one_line() -> None:
    result = Result(91.6, 0.877, 99.7, 0.173, 0.31428, 1000, 1234.4)
    assert str(result) == "top-1 91.60 ± 0.88 %, top-5 99.70 ± 0.17 %, loss 0.3143, 1000 images, 1234 images/s"


def test_a_device_may_be_a_name() -> None:
    """Of what runs a network, and of what feeds it."""
    assert Execution(device="cpu").device == Loading(batch_size=1, device="cpu").device == torch.device("cpu")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="nonsense"):
        Execution(device="nonsense")  # type: ignore[arg-type]
