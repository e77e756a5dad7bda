"""What a type checker says of a user's program."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import adderzoo

PROGRAM = """
import torch
import adderzoo
from adderzoo.layers import Adder2d, AdderLinear, AdderTranspose2d, BatchNorm2d, BinaryConv2d, ShiftConv2d
from adderzoo.models import adder_edsr_baseline_x2, adder_resnet20, cnn_lenet5
from adderzoo.ops import adder2d

x = torch.zeros(1, 3, 32, 32)
reveal_type(adder_resnet20())  # adderzoo.models.adder_resnet.ResNet
reveal_type(adder_resnet20(num_classes=5, conv_layer="shift")(x))  # torch._tensor.Tensor
adder_resnet20(num_classes="three")  # error: "num_classes" to "adder_resnet20" has incompatible type "str"
cnn_lenet5(classes=3)  # error: Unexpected keyword argument "classes"
adder_edsr_baseline_x2(blocks=4, width=1.5)  # error: "width" to "adder_edsr_baseline_x2" has incompatible type "float"
reveal_type(adderzoo.create_model("adder_resnet20")(x))  # torch._tensor.Tensor
reveal_type(adderzoo.create_model("adder_resnet20").num_classes)  # int
reveal_type(adderzoo.load("weights.safetensors")(x))  # torch._tensor.Tensor
reveal_type(adderzoo.fuse(adder_resnet20()))  # torch.fx.graph_module.GraphModule
reveal_type(Adder2d(3, 4, 3)(x))  # torch._tensor.Tensor
reveal_type(AdderLinear(3, 4)(x))  # torch._tensor.Tensor
reveal_type(AdderTranspose2d(3, 4, 3)(x))  # torch._tensor.Tensor
reveal_type(BinaryConv2d(3, 4, 3)(x))  # torch._tensor.Tensor
reveal_type(ShiftConv2d(3, 4, 3)(x))  # torch._tensor.Tensor
reveal_type(BatchNorm2d(3)(x))  # torch._tensor.Tensor
Adder2d(3, 4, "3x3")  # error: "Adder2d" has incompatible type "str"
reveal_type(adder2d(x, x))  # torch._tensor.Tensor
reveal_type(adderzoo.list_models("adder_*"))  # list[str]
reveal_type(adderzoo.catalogue.networks()[0].parameters)  # int
config = adderzoo.TrainConfig(model="adder_resnet20", lr=0.1, scale=(0.5, 1), opt_kwargs={"eps": 1})
reveal_type(adderzoo.train(config, tell=print).history)  # list[adderzoo.engine.training.Epoch]
adderzoo.TrainConfig(lr="fast")  # error: "lr" to "TrainConfig" has incompatible type "str"
adderzoo.TrainConfig(clip_mode="all")  # error: "clip_mode" to "TrainConfig" has incompatible type
adderzoo.TrainConfig(learning_rate=0.1)  # error: Unexpected keyword argument "learning_rate"
classifier = adderzoo.Classifier("adder_resnet20.cifar10", in_chans=1)
reveal_type(classifier("photo.jpg").probability)  # float
reveal_type(classifier(["a.jpg", "b.jpg"]))  # list[adderzoo.pipelines.classifier.Prediction]
reveal_type(classifier.features(x))  # torch._tensor.Tensor
reveal_type(adderzoo.Upscaler()("photo.jpg"))  # PIL.Image.Image
reveal_type(adderzoo.Upscaler()(x))  # torch._tensor.Tensor
adderzoo.engine.learn()  # error: Module has no attribute "learn"
adderzoo.no_such_function()  # error: Module has no attribute "no_such_function"
"""


def is_installed() -> bool:
    """Whether what the tests import is what an installed package's programs import, editable or not."""
    try:
        return Path(str(distribution("adderzoo").locate_file("adderzoo"))).samefile(Path(adderzoo.__file__).parent)
    except (ImportError, OSError):
        return False


def test_a_program_is_checked(tmp_path: Path) -> None:
    """By mypy, as it comes, with nothing told of where this package is, unless it is only on PYTHONPATH."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "MYPYPATH"}
    if not is_installed():
        environment["MYPYPATH"] = str(Path(adderzoo.__file__).parent.parent)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--no-incremental", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said: dict[int, str] = {}
    for line in done.stdout.splitlines():
        if match := re.match(r"program\.py:(\d+): (.*)", line):
            said.setdefault(int(match[1]), match[2])
    for number, line in enumerate(PROGRAM.splitlines(), 1):
        code, _, expected = line.partition("  # ")
        if expected.startswith("error: "):
            assert said[number].startswith("error: "), (line, done.stdout)
            assert expected.removeprefix("error: ") in said[number], (line, said[number])
        elif code.startswith("reveal_type"):
            assert said[number] == f'note: Revealed type is "{expected}"', line
        else:
            assert number not in said, (line, said.get(number))
