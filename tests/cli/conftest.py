import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done
from example_data import write_digits

from adderzoo.cli import main


@pytest.fixture
def adderzoo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, run in this process."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err + "".join(f"{warning.message}\n" for warning in caught))

    return run


@pytest.fixture
def train(adderzoo: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """A quick training, into tmp_path/out/run unless the arguments say otherwise."""

    def run(*arguments: object) -> Done:
        defaults = ("--model", "adder_lenet5", "--workers", 0, "--output", tmp_path / "out", "--experiment", "run")
        return adderzoo("train", *defaults, *arguments)

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder
