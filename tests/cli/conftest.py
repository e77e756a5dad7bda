import warnings
from collections.abc import Callable

import pytest
from commands import Done

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
