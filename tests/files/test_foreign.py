import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from adderzoo.files import foreign


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    value = {"psnr": math.inf, "loss": [math.nan, -math.inf, 1.5], "n": 3, "row": ({"x": None},)}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = foreign.to_json(value, indent=2)
    assert json.loads(text, parse_constant=refuse) == {
        "psnr": None, "loss": [None, None, 1.5], "n": 3, "row": [{"x": None}]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[1, NaN]", "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ("[" * 100_000, "nested without end"),
        ("[" * 20 + "]" * 20, "nested without end"),
        ('{"a":' * 50 + "1" + "}" * 50, "nested without end"),
    ],
)
def test_what_is_no_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foreign.parse_json(text)


GOOD = {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2], "interpolation": "bicubic", "crop_pct": 0.9}


def test_a_good_data_config_is_taken_without_what_is_none_of_it() -> None:
    config = foreign.check_data_config(GOOD | {"crop_mode": "center", "file": "/etc/passwd", "classifier": "fc"})
    assert config == {
        "input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2,),
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("input_size", value) for value in (5, [], [1, "a", 32], [1, 100000, 100000], [3, 32], [3, 32.0, 32])),
        *(("input_size", value) for value in ([0, 32, 32], [True, 32, 32], None, "3x32x32")),
        *(("interpolation", value) for value in ("", "spline", None, [], {})),
        *(("mean", value) for value in (0.5, [], ["a"] * 3, [0.5] * 2, [math.nan] * 3, [1e300] * 3, None)),
        *(("std", value) for value in ([0, 0.1, 0.1], [-1] * 3, [0.5] * 4)),
        *(("crop_pct", value) for value in (0, -1, "1", None, 1e-9)),
        *(("crop_mode", value) for value in ("", None, 3)),
    ],
)
def test_a_data_config_that_is_none_is_refused_by_the_name_of_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key} must be .*, got "):
        foreign.check_data_config(GOOD | {key: value})


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (foreign.check_data_config, [], "must be an object"),
        (foreign.check_class_names, {"a": 0}, "must be a list of names"),
        (foreign.check_class_names, ["a", 3], "must be a list of names"),
        (foreign.check_class_names, ["a\x1b[2J"], "without control characters"),
        (foreign.check_class_names, ["\ud800"], "without control characters"),
        (foreign.check_num_classes, "9" * 5000, "from 0 to 1000000"),
        (foreign.check_num_classes, "-1", "from 0 to 1000000"),
        (foreign.check_num_classes, "٣", "from 0 to 1000000"),
        (foreign.check_num_classes, True, "from 0 to 1000000"),
        (foreign.check_model_args, [["pretrained", True]], "must be an object"),
        (foreign.check_model_args, {"checkpoint_path": "x"}, "would read other files: checkpoint_path"),
        (foreign.check_model_args, {"layers": [1, [10**9]]}, "numbers must be from -1048576 to 1048576"),
        (foreign.check_ranges, {"bits": 10**9, "quantizers": {}}, "bits must be an integer from 4 to 8"),
        (foreign.check_ranges, {"bits": 8}, "quantizers must be an object"),
        (foreign.check_ranges, {"bits": 8, "quantizers": {"a": [0.1]}}, "quantizers must be an object"),
        (foreign.check_ranges, {"bits": 8, "quantizers": {"a": [0.1, 256]}}, "zero points of 8 bits"),
        (foreign.check_ranges, {"bits": 8, "quantizers": {"a": [-0.1, 3]}}, "scales, above 0"),
    ],
)
def test_what_is_said_of_a_network_is_checked(check: Callable[[Any], Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as info:
        check(value)
    assert len(str(info.value)) < 500
    assert str(info.value).isprintable()


def test_what_is_said_of_a_network_is_taken() -> None:
    assert foreign.check_class_names(("crane", "crane", "näht")) == ["crane", "crane", "näht"]  # as in ImageNet
    assert foreign.check_num_classes("0") == 0
    assert foreign.check_model_args({"drop_rate": 0.1, "norm": False, "layers": [3, 3], "name": None})
    assert foreign.check_ranges({"bits": 4, "quantizers": {"a": [0.1, 15]}})
