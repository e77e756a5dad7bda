"""The options of a training, as Python gives them."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

import adderzoo
from adderzoo import TrainConfig, engine
from adderzoo.cli import parsers
from adderzoo.cli._parser import Parser
from adderzoo.cli.train import config_of
from adderzoo.engine import read_config
from adderzoo.engine.config import train_options

OPTIONS = {option.name: option for option in train_options()}


def parser() -> Parser:
    return parsers(["train"])[1]["train"]


def parsed(*words: str) -> TrainConfig:
    return config_of(parser().parse_args(words))


# ------------------------------------------------------------------------------------------------------ in one place


def test_every_field_says_what_it_is_and_the_parser_has_these_options_and_no_others() -> None:
    actions = {action.dest: action for action in parser()._actions if action.dest not in ("help", "data")}
    assert sorted(actions) == sorted(field.name for field in fields(TrainConfig))
    for field in fields(TrainConfig):
        action, option = actions[field.name], OPTIONS[field.name]
        assert option.about.help
        assert action.help == option.about.help or field.name == "data_dir"  # which is DIR too
        assert f"--{field.name.replace('_', '-')}" in action.option_strings
        assert f"        {field.name}: " in (TrainConfig.__doc__ or "")
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        if not action.required:
            assert (dict(action.default) if default == {} else action.default) == default


def test_the_command_line_alone_gives_the_defaults() -> None:
    assert parsed("--model", "adder_lenet5") == TrainConfig(model="adder_lenet5")


def test_the_folder_is_a_positional_or_an_option() -> None:
    expected = TrainConfig(model="adder_lenet5", data_dir="a", epochs=3)
    words = ["-m", "adder_lenet5", "--epochs", "3"]
    for line in (["a", *words], [*words, "a"], [*words[:2], "a", *words[2:]], [*words, "--data-dir", "a"]):
        assert parsed(*line) == expected


def test_what_an_option_says_of_others_names_options() -> None:
    for option in OPTIONS.values():
        other = option.about.other_than
        assert other is None or OPTIONS[other].about.other_than == option.name
        if option.about.matters:  # it reads these alone
            assert option.about.matters(TrainConfig().as_dict()) in (True, False)


@pytest.mark.parametrize("name", ["config", "options"])
def test_options_need_no_pytorch(name: str) -> None:
    program = f"import sys; sys.argv = ['adderzoo']; import adderzoo.engine.{name}; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(adderzoo.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_names_of_the_engine_are_there_when_they_are_asked_for() -> None:
    assert dir(engine) == engine.__all__ == sorted(engine.__all__)
    for name in engine.__all__:
        assert getattr(engine, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'adderzoo\.engine' has no attribute 'learn'"):
        _ = engine.learn


# ------------------------------------------------------------------------------------------------- there and back


def some(option: Any, rng: random.Random) -> Any:
    """A value that the option takes, and that is often another than its default."""
    about = option.about
    if option.kind is bool:
        return rng.random() < 0.5
    if option.kind is Literal:
        return rng.choice(option.items)
    if option.kind is dict:
        values = [1, 1.5, "text", "it's a text", "5", "True", "", True, None, [1, "a"], {"a": [None, 2.5]}]
        return {f"key{index}": rng.choice(values) for index in range(rng.randrange(1, 4))}
    if option.kind is list:
        whole = option.items[0] is int
        numbers = sorted(rng.sample(range(1, 99), about.count or 3))
        return ["a b", "c"] if option.items[0] is str else [number if whole else number / 64 for number in numbers]
    if option.kind is str:
        return rng.choice(["name", "two words", "it's", "däta", "-x", "a=b", ""])
    if option.kind is int:
        return rng.randrange(4, 9)
    return rng.choice([0.125, 0.3, 1e-12, 1.0])


ALONE = ("kd", "quantize_bits", "warmup_epochs", "mixup", "cutmix")  # which ask something of others


@pytest.mark.parametrize("seed", range(20))
def test_any_options_come_back_from_args_yaml_and_from_their_command(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    names = [n for n, option in OPTIONS.items() if n not in ALONE and option.about.group != "distillation"]
    given = {name: some(OPTIONS[name], rng) for name in names if rng.random() < 0.4}
    given.pop("initial_checkpoint" if given.get("pretrained") else "pretrained", None)
    given.pop(rng.choice(["eta", "filter_lr_scale"]), None)
    config = TrainConfig(**given | {"model": "adder_lenet5", "experiment": "a run"})

    (tmp_path / "args.yaml").write_text(yaml.safe_dump(config.as_dict() | {"processes": 2}, sort_keys=False))
    assert read_config(tmp_path) == config
    assert json.loads(json.dumps(config.as_dict())) == config.as_dict()
    program, command, *words = shlex.split(config.command())
    assert (program, command) == ("adderzoo", "train")
    if config.in_memory is False:
        assert "--no-in-memory" in words
    assert parsed(*words) == replace(config, resume=False)


def test_options_of_distillation_come_back_too(tmp_path: Path) -> None:
    config = TrainConfig(
        model="adder_lenet5",
        kd="logits",
        kd_model_name=("cnn_lenet5", "cnn_lenet5.digits"),
        kd_checkpoint=[Path("a.safetensors"), "b c.safetensors"],
        kd_temperature=np.float32(2),
        mixup=0.5,
    )
    assert config.kd_checkpoint == ["a.safetensors", "b c.safetensors"]
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert read_config(tmp_path) == config
    assert parsed(*shlex.split(config.command())[2:]) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "which is no YAML"),
        ("- 1", "which holds"),
        ("model: a\nlearning_rate: 1", "options must be those of a training, got learning_rate"),
        ("model: a\nlr: fast", "lr must be a number or None, got 'fast'"),
    ],
)
def test_an_args_yaml_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "args.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


# ------------------------------------------------------------------------------------------------------------- values


def test_numbers_and_paths_of_other_libraries_are_taken_as_pythons_own() -> None:
    config = TrainConfig(lr=1, batch_size=np.int64(4), hflip=np.float64(0.25), data_dir=Path("a"), scale=(0.5, 1))
    assert (config.lr, config.batch_size, config.hflip) == (1.0, 4, 0.25)
    assert {type(value) for value in (config.lr, config.hflip)} == {float}
    assert type(config.batch_size) is int
    assert (config.data_dir, config.scale) == ("a", [0.5, 1.0])


@pytest.mark.parametrize("name", ["opt_kwargs", "model_kwargs"])
def test_so_are_those_in_dicts(tmp_path: Path, name: str) -> None:
    given = {"a": np.float64(0.5), "b": [np.int64(2), np.float32(0.25)], "c": Path("d"), "e": {"f": np.str_("g")}}
    expected = {"a": 0.5, "b": [2, 0.25], "c": "d", "e": {"f": "g"}}
    config = TrainConfig(**{"model": "adder_lenet5", name: given})
    taken = getattr(config, name)
    assert taken == expected
    assert [type(taken[key]) for key in "ac"] == [float, str]
    assert [type(value) for value in taken["b"]] == [int, float]
    assert type(taken["e"]["f"]) is str
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert read_config(tmp_path) == config == parsed(*shlex.split(config.command())[2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "0.1"}, "lr must be a number or None, got '0.1'"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"epochs": 2.0}, "epochs must be an integer or None, got 2.0"),
        ({"workers": None}, "workers must be an integer, got None"),
        ({"epochs": True}, "epochs must be an integer or None, got True"),
        ({"momentum": True}, "momentum must be a number, got True"),
        ({"amp": "yes"}, "amp must be True or False, got 'yes'"),
        ({"amp": 1}, "amp must be True or False, got 1"),
        ({"amp_dtype": "float32"}, "amp-dtype must be one of bfloat16, float16, got 'float32'"),
        (
            {"sched": "cosin"},
            "sched must be one of cosine, step, multistep, poly, plateau, tanh, wsd, rsqrt, constant, none, "
            "got 'cosin', did you mean cosine?",
        ),
        ({"clip_mode": ["norm"]}, "clip-mode must be one of norm, value, agc, got ['norm']"),
        ({"device": 0}, "device must be a text, got 0"),
        ({"data_dir": 5}, "data-dir must be a text or None, got 5"),
        ({"decay_milestones": 5}, "decay-milestones must be a list, each an integer, got 5"),
        ({"decay_milestones": "123"}, "decay-milestones must be a list, each an integer, got '123'"),
        ({"decay_milestones": [1, 2.5]}, "decay-milestones must be a list, each an integer, got [1, 2.5]"),
        ({"decay_milestones": []}, "decay-milestones must be rising epochs from 1, got []"),
        ({"scale": (0.1, 0.5, 1)}, "scale must be two numbers above 0, the smaller first, got [0.1, 0.5, 1.0]"),
        ({"opt_kwargs": [("eps", 1)]}, "opt-kwargs must be a dict, got [('eps', 1)]"),
        ({"opt_kwargs": {1: 2}}, "opt-kwargs must have names for keys, got 1"),
        ({"opt_kwargs": {"lr": 1}}, "opt-kwargs must not have lr: there is --lr"),
        ({"model_kwargs": {"key": 1j}}, "model-kwargs key must be a finite number, a text, True, False, None or"),
        ({"model_kwargs": {"key": [1.0, float("nan")]}}, "model-kwargs key must be a finite number, a text"),
        ({"opt_kwargs": {"key": float("inf")}}, "opt-kwargs key must be a finite number, a text"),
        ({"opt_kwargs": {"key": {1: 2}}}, "opt-kwargs key must be a finite number, a text"),
        ({"model_kwargs": {"drop_rate": 2.0**21}}, "model-kwargs cannot be used: its numbers must be from -1048576 to"),
        ({"model_kwargs": {"key": [[[[[[[0]]]]]]]}}, "model-kwargs cannot be used: it is nested without end"),
        ({"kd": "logits", "kd_model_name": []}, "kd-model-name must be one or several, got []"),
        ({"kd": "pkkd", "kd_model_name": []}, "kd-model-name must be one or several, got []"),
        ({"kd": "logits", "kd_checkpoint": ()}, "kd-checkpoint must be one or several, got []"),
        ({"pretrained": True, "initial_checkpoint": "a"}, "pretrained cannot be given with initial-checkpoint"),
        ({"eta": 0.1, "filter_lr_scale": 2.0}, "eta cannot be given with filter-lr-scale"),
        ({"batch_size": 1}, "batch-size must be at least 2, got 1"),
        ({"resume": True}, "resume needs --experiment"),
    ],
    ids=str,
)
def test_bad_values_are_refused_when_they_are_given(options: Mapping[str, Any], message: str) -> None:
    start = f"^{re.escape(message)}"
    with pytest.raises(ValueError, match=start):
        TrainConfig(model="adder_lenet5", **options)
    with pytest.raises(ValueError, match=start):
        replace(TrainConfig(model="adder_lenet5"), **options)


def test_what_is_usual_depends_on_the_task() -> None:
    config = TrainConfig(model="any", weight_decay=0.5)
    names = ("epochs", "img_size", "opt", "weight_decay", "eta")
    classifier, other = (config.for_task(super_resolution) for super_resolution in (False, True))
    assert [getattr(classifier, name) for name in names] == [400, None, "momentum", 0.5, 0.2]
    assert [getattr(other, name) for name in names] == [400, 48, "adam", 0.5, 50.0]
    assert classifier.for_task(False) == classifier
    assert replace(config, filter_lr_scale=3.0).for_task(False).eta is None
    assert [config.for_task(task).for_data(task, 10**6, 3).batch_size for task in (False, True)] == [256, 16]
    with pytest.raises(ValueError, match=r"^hflip is for classifiers, but any is for super-resolution"):
        replace(config, hflip=0.1).for_task(True)
    with pytest.raises(ValueError, match=r"^quantize-bits is for trained weights"):
        replace(config, quantize_bits=4).for_task(False)
    with pytest.raises(ValueError, match=r"^epoch-repeats is for super-resolution, but any is a classifier"):
        replace(config, epoch_repeats=2).for_task(False)


def test_what_is_usual_for_weights_to_start_from() -> None:
    scratch = TrainConfig(model="adder_lenet5.digits", pretrained=False).for_task(False, published=True)
    tuned = TrainConfig(model="adder_lenet5.digits").for_task(False, published=True)
    file = TrainConfig(model="adder_lenet5.digits", initial_checkpoint="a").for_task(False, published=True)
    assert (scratch.pretrained, tuned.pretrained, file.pretrained) == (False, True, None)
    assert (scratch.epochs, tuned.epochs, file.epochs) == (400, 30, 30)
    assert TrainConfig(model="adder_lenet5").for_task(False).epochs == 400
    assert replace(tuned, epochs=7).for_task(False).epochs == 7


@pytest.mark.parametrize(
    ("images", "processes", "mixup", "batch_size"), [(200, 1, 0, 32), (3, 1, 0, 3), (7, 2, 0, 3), (7, 1, 0.2, 6)]
)
def test_a_batch_is_no_larger_than_the_data_unless_it_is_asked_for(
    images: int, processes: int, mixup: float, batch_size: int
) -> None:
    config = TrainConfig(model="adder_lenet5.digits", mixup=mixup).for_task(False, published=True)
    assert config.for_data(False, images, 1, processes).batch_size == batch_size
    assert replace(config, batch_size=64).for_data(False, images, 1, processes).batch_size == 64


def test_gray_images_are_not_flipped_in_fine_tuning() -> None:
    """What is gray may be digits or letters."""
    config = TrainConfig(model="adder_lenet5.digits").for_task(False, published=True)
    flips = [config.for_data(False, 9, channels).hflip for channels in (1, 3)]
    scratch = TrainConfig(model="adder_lenet5").for_task(False).for_data(False, 9, 1).hflip
    assert (flips, scratch) == ([0.0, 0.5], 0.5)
    assert replace(config, hflip=0.2).for_data(False, 9, 1).hflip == 0.2


def test_one_image_is_none_to_train_on() -> None:
    with pytest.raises(ValueError, match="there must be at least 2 training images, for each process, got 1"):
        TrainConfig(model="adder_lenet5").for_task(False).for_data(False, 1, 1)
