import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import adderzoo as package
from adderzoo.cli import COMMANDS, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert {"list", "validate", "predict", "convert"} <= set(COMMANDS)
    assert all(f"\n    {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main([command, "--help"])
    captured = capsys.readouterr()
    assert (info.value.code, captured.err) == (0, "")
    assert captured.out.startswith(f"usage: adderzoo {command} ")
    assert ("--model" in captured.out) == (command != "list")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_no_pytorch(command: str) -> None:
    program = (
        f"import sys; sys.argv = ['adderzoo', *{command.split()}, '--help']; from adderzoo.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    path = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["trane"], "there is no command 'trane', did you mean train? (adderzoo --help names them)"),
        (
            ["train", "--modle", "adder_lenet5"],
            "there is no option --modle, did you mean --model? (adderzoo train --help",
        ),
        (["train", "--batch_size=3"], "there is no option --batch_size, did you mean --batch-size?"),
        (["train", "-model", "adder_lenet5"], "there is no option -model, did you mean --model?"),
        (
            ["train", "-m", "a", "--remode", "cosnt"],
            "--remode must be one of const, rand, pixel, got 'cosnt', did you mean const?",
        ),
        (["train", "-m", "a", "b", "c"], "there is no place for c"),
        (["train", "-m", "a", "b", "--data-dir", "c"], "the folder must be given once, as DIR or as --data-dir"),
        (["train", "-m", "a", "b", "--epochs", "many"], "--epochs must be an integer, got 'many'"),
        (["train", "b", "--lr", "x", "-m", "a"], "--lr must be a number, got 'x'"),
        (["predict", "--model", "adder_lenet5"], "required: IMAGE"),
        (
            ["validate", "--model", "adder_lenet5", "--random-weights", "--checkpoint", "a.pth"],
            "not allowed with argument",
        ),
    ],
)
def test_a_command_line_that_cannot_be_parsed_ends_with_status_2_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "errors", "expected"),
    [
        ("ascii", "strict", b"99.00 +- 0.50 \\u03b1 \xff\n"),
        ("ascii", "surrogateescape", b"99.00 +- 0.50 \\u03b1 \xff\n"),
        ("latin-1", "strict", b"99.00 \xb1 0.50 \\u03b1 \xff\n"),
        ("utf-8", "strict", "99.00 ± 0.50 \u03b1 ".encode() + b"\xff\n"),
        ("ascii", "ignore", b"99.00  0.50  \n"),  # the user's choice, by PYTHONIOENCODING
    ],
)
def test_a_terminal_that_lacks_a_character_gets_another_one(
    encoding: str, errors: str, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    # A name whose bytes are no text, as Python has it.
    monkeypatch.setattr("adderzoo.cli.list.run", lambda args: print("99.00 ± 0.50 \u03b1 \udcff"))
    assert main(["list"]) == 0
    assert stream.buffer.getvalue() == expected  # type: ignore[attr-defined]
