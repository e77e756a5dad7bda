import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import Done, run_group
from pictures import as_input, lively_network, random_images, write_folder

import adderzoo as package

Command = Callable[..., Done]
NAME = "adder_lenet5"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = timm.get_pretrained_cfg(NAME)
    model = lively_network(NAME, as_input(random_images(64, mode="L"), config.mean, config.std))
    path = tmp_path_factory.mktemp("checkpoint") / "lenet.pth"
    torch.save(model.state_dict(), path)
    return path


def write_images(root: Path, count: int) -> Path:
    labels = np.random.default_rng(0).integers(0, 10, count).tolist()
    return write_folder(root, random_images(count, mode="L", seed=3), labels)


def arguments(checkpoint: Path, folder: Path, results: Path, batch_size: int = 2) -> list[object]:
    return [
        *("validate", "--model", NAME, "--checkpoint", checkpoint, "--data-dir", folder),
        *("--workers", 0, "--batch-size", batch_size, "--json", results),
    ]


def assert_same_result(got: Path, expected: Path) -> None:
    one, many = (json.loads(path.read_text()) for path in (expected, got))
    exact = ("top1", "top1_se", "top5", "top5_se", "images")
    assert {key: many[key] for key in exact} == {key: one[key] for key in exact}
    assert many["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_two_processes_of_torchrun_agree_with_one_on_1001_images(
    adderzoo: Command, tmp_path: Path, checkpoint: Path
) -> None:
    folder = write_images(tmp_path / "images", 1001)
    assert adderzoo(*arguments(checkpoint, folder, tmp_path / "one.json", 128)).status == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "adderzoo.cli"]
    done = subprocess.run(
        [sys.executable, *map(str, launcher), *map(str, arguments(checkpoint, folder, tmp_path / "two.json", 128))],
        env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parent.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert_same_result(tmp_path / "two.json", tmp_path / "one.json")
    result = json.loads((tmp_path / "two.json").read_text())
    assert result["images"] == 1001
    assert 0 < result["top1"] < result["top5"] < 100
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["top-1"]


@pytest.mark.parametrize(("count", "processes"), [(3, 2), (1, 2), (2, 3), (1, 3), (7, 3), (8, 2)])
def test_images_that_only_even_out_the_processes_do_not_count(
    adderzoo: Command, tmp_path: Path, checkpoint: Path, count: int, processes: int
) -> None:
    folder = write_images(tmp_path / "images", count)
    assert adderzoo(*arguments(checkpoint, folder, tmp_path / "one.json")).status == 0
    group = run_group([arguments(checkpoint, folder, tmp_path / "many.json")] * processes, tmp_path)
    assert [done.status for done in group] == [0] * processes, group
    assert_same_result(tmp_path / "many.json", tmp_path / "one.json")
    assert json.loads((tmp_path / "many.json").read_text())["images"] == count


def test_only_the_first_process_prints(tmp_path: Path, checkpoint: Path) -> None:
    folder = write_images(tmp_path / "images", 5)
    command = ["validate", "--model", NAME, "--random-weights", "--data-dir", folder, "--workers", 0]
    first, second = run_group([command, command], tmp_path)
    assert (first.status, second.status) == (0, 0)
    assert len(first.out.splitlines()) == 1
    assert "random weights" in first.err
    assert (second.out, second.err) == ("", "")


def test_a_damaged_image_in_one_process_ends_all_of_them(tmp_path: Path, checkpoint: Path) -> None:
    folder = write_images(tmp_path / "images", 8)
    ordered = sorted(folder.glob("*/*.png"))
    ordered[5].write_bytes(b"no image")  # an odd one: the second process reads it
    results = tmp_path / "r.json"
    first, second = run_group([arguments(checkpoint, folder, results)] * 2, tmp_path)
    assert (first.status, second.status) == (1, 1)
    assert f"error: image {ordered[5]} cannot be read: " in second.err.splitlines()[-1]
    assert first.err.splitlines()[-1] == "adderzoo validate: error: another process of the group has failed"
    assert "Traceback" not in first.err + second.err
    assert (first.out, second.out, results.exists()) == ("", "", False)


def test_a_folder_that_one_process_lacks_ends_all_of_them(tmp_path: Path, checkpoint: Path) -> None:
    folder = write_images(tmp_path / "images", 4)
    commands = [arguments(checkpoint, path, tmp_path / "r.json") for path in (folder, tmp_path / "nowhere")]
    first, second = run_group(commands, tmp_path)
    assert (first.status, second.status) == (1, 1)
    assert second.error.startswith("adderzoo validate: error: data-dir must be a folder, got ")
    assert first.err.splitlines()[-1] == "adderzoo validate: error: another process of the group has failed"
    assert not (tmp_path / "r.json").exists()


def test_a_stream_is_refused_by_every_process(tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("webdataset")
    stream: dict[str, Any] = {"--dataset": "wds/pictures", "--split": "part-{0..1}.tar|12", "--data-dir": tmp_path}
    command = [
        *arguments(checkpoint, tmp_path, tmp_path / "r.json"),
        *(part for pair in stream.items() for part in pair),
    ]
    for done in run_group([command] * 2, tmp_path):
        assert done.status == 1
        assert "'wds/pictures' is a stream, which several processes cannot share exactly" in done.err.splitlines()[-1]
        assert "Traceback" not in done.err


def test_a_group_of_one_process_is_no_group(adderzoo: Command, tmp_path: Path, checkpoint: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    assert adderzoo(*arguments(checkpoint, folder, tmp_path / "one.json")).status == 0
    (done,) = run_group([arguments(checkpoint, folder, tmp_path / "many.json")], tmp_path)
    assert done.status == 0, done
    assert_same_result(tmp_path / "many.json", tmp_path / "one.json")
