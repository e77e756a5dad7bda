import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import batches, lenet, result, training

from adderzoo.engine import Epoch, TrainConfig, best_epoch, run_epochs, write_epoch
from adderzoo.engine.files import check_folder, write_options


def epoch(number: int, top1: float | None, loss: float | None = 1.0) -> Epoch:
    found = {} if top1 is None else {"eval_loss": loss, "eval_top1": top1, "eval_top1_se": 1.0}
    return Epoch(epoch=number, train_loss=1.0, train_top1=50.0, **found, lr=0.1, seconds=1.0)


def test_the_best_epoch_is_the_first_of_highest_accuracy_then_lowest_loss() -> None:
    history = [epoch(1, 50), epoch(2, 70, 0.5), epoch(3, 70, 0.4), epoch(4, 70, 0.4), epoch(5, 60, 0.1)]
    best = best_epoch(history)
    assert best is not None
    assert best.epoch == 3
    nan = best_epoch([epoch(1, 70, float("nan")), epoch(2, 70, 9.0)])
    assert nan is not None
    assert nan.epoch == 2


def test_epochs_of_super_resolution_are_compared_by_psnr() -> None:
    history = [
        Epoch(epoch=number, train_loss=1.0, eval_psnr=psnr, eval_ssim=0.9, lr=0.1, seconds=1.0)
        for number, psnr in enumerate((30.0, 31.0, 30.5), 1)
    ]
    best = best_epoch(history)
    assert best is not None
    assert best.epoch == 2
    assert "PSNR 31.00 dB, SSIM 0.9000" in str(best)


def test_without_validation_no_epoch_is_the_best(tmp_path: Path) -> None:
    state = training(lenet(), epochs=1)
    assert best_epoch([epoch(1, None)]) is None
    for _ in run_epochs(state, batches(1), epochs=1):
        write_epoch(tmp_path, state, {})
    files = {"last.safetensors", "model.safetensors", "state.pt", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert (tmp_path / "model.safetensors").readlink() == Path("last.safetensors")


def test_files_hold_the_best_and_the_last_weights_and_a_line_an_epoch(tmp_path: Path) -> None:
    state = training(lenet(), epochs=3)
    found: Iterator[float] = iter((20.0, 30.0, 25.0))
    weights = []
    for _ in run_epochs(state, batches(1), epochs=3, validate=lambda model: result(next(found))):
        write_epoch(tmp_path, state, {"architecture": "adder_lenet5"})
        weights.append({key: value.clone() for key, value in state.model.state_dict().items()})
    for name, number, top1 in (("best", 2, "30.00"), ("last", 3, "25.00")):
        path = tmp_path / f"{name}.safetensors"
        content = load_file(path)
        assert content.keys() == weights[number - 1].keys()
        assert all(torch.equal(content[key], value) for key, value in weights[number - 1].items())
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert (metadata["architecture"], metadata["epoch"], metadata["top1"]) == ("adder_lenet5", str(number), top1)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], float(row["eval_top1"])) for row in rows] == [("1", 20), ("2", 30), ("3", 25)]
    assert {"train_loss", "eval_loss", "eval_top5", "lr"} <= rows[0].keys()


def test_a_channels_last_network_is_written_as_any_other(tmp_path: Path) -> None:
    model = lenet()
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    state = training(model.to(memory_format=torch.channels_last))
    state.history.append(epoch(1, None))
    write_epoch(tmp_path, state, {})
    content = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(content[key], value) for key, value in expected.items())


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = training(lenet())
    state.history.append(epoch(1, 50))
    write_epoch(tmp_path, state, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    state.history.append(epoch(2, 60))
    with pytest.raises(OSError, match="No space left"):
        write_epoch(tmp_path, state, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_options_that_nothing_can_be_compared_with_are_said_to_be(tmp_path: Path) -> None:
    options, said = TrainConfig(experiment="run", resume=True).as_dict(), list[str]()
    (tmp_path / "state.pt").touch()
    check_folder(tmp_path, options, said.append)
    assert said == [
        f"{tmp_path}/args.yaml is missing: whether these are the options of the training there is not known"
    ]
    write_options(tmp_path, options)
    check_folder(tmp_path, options, said.append)
    assert len(said) == 1
