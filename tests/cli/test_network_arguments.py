"""What commands make of the arguments that name a network."""

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "digits/test/3"),
        ("validate", "--data-dir", "digits/test"),
        ("quantize", "--data-dir", "digits", "out.safetensors"),
        ("profile", "--plots", "out", "--data-dir", "digits"),
        ("export", "--format", "pt2", "out.pt2"),
    ],
    ids=lambda command: command[0],
)
def test_images_have_the_channels_of_the_data_configuration(
    adderzoo: Callable[..., Done], digits: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(digits.parent)
    arguments = [argument.replace("digits", digits.name) for argument in command]
    done = adderzoo(*arguments, "--model", "adder_resnet20", "--model-kwargs", "in_chans=1")
    error = "model-kwargs in_chans must be 3, the channels of the network's data configuration, got 1"
    assert (done.status, done.err.splitlines()[-1]) == (1, f"adderzoo {command[0]}: error: {error}")
    assert not list(digits.parent.glob("out*"))
