import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import adderzoo as package
from adderzoo.cli import COMMANDS, main, parsers

ROOT = str(Path(__file__).resolve().parent.parent.parent)


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
    assert ("--model" in captured.out) == (command not in ("list", "env"))


def imported(lines: list[list[str]]) -> list[tuple[int, list[str]]]:
    """Exit status of each command line, and what of PyTorch there is then, all in one process."""
    program = (
        "import contextlib, io, json, sys; sys.argv = ['adderzoo']; from adderzoo.cli import main; found = []\n"
        f"for line in {lines!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        try: status = main(line)\n"
        "        except SystemExit as error: status = error.code\n"
        "    found.append([status, sorted({'torch', 'timm', 'numpy'} & set(sys.modules))])\n"
        "print(json.dumps(found))"
    )
    path = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [(status, modules) for status, modules in json.loads(done.stdout)]


def test_help_and_version_need_no_pytorch() -> None:
    lines = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    assert imported(lines) == [(0, [])] * len(lines)


def test_wrong_words_are_refused_without_pytorch() -> None:
    lines = [["trane"], ["--verison"], ["train", "-m", "adder_lenet5", "--remode", "cosnt"]]
    lines += [[command, "--no-such-option"] for command in COMMANDS]
    assert imported(lines) == [(2, [])] * len(lines)
    names = ["adder_lenet6", "cnn_resnet20.cifar11", "adder_lenet5.digts"]
    assert imported([["train", "x", "-m", name] for name in names]) == [(1, [])] * len(names)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--version"])
    assert info.value.code == 0
    assert capsys.readouterr().out == f"adderzoo {package.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_a_short_usage_line_and_examples_that_parse(command: str) -> None:
    parser, made = parsers()
    each = made[command] if command else parser
    usage = each.format_usage()
    assert usage.count("\n") == 1
    assert len(usage) <= 80
    assert usage.startswith(f"usage: adderzoo {command}".rstrip())
    assert each.examples
    for example in each.examples:
        program, *words = shlex.split(example)
        assert program == "adderzoo"
        assert f"  {example}\n" in each.format_help()
        parsers()[0].parse_args(words)
    assert each.examples[0].startswith(f"adderzoo {command}".strip())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_a_phrase_that_says_what_happens_without_it(command: str) -> None:
    for action in parsers([command])[1][command]._actions:
        if action.help != argparse.SUPPRESS and action.dest != "help":
            assert action.help, action.dest
            assert len(action.help.split()) > 2, action.help
        if action.option_strings and action.dest not in ("help", "data_dir") and not action.required:
            assert re.search(r"\(default: |without |in place of ", action.help or ""), (
                action.option_strings,
                action.help,
            )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("adder_renset20.cifar10", "got 'adder_renset20.cifar10', did you mean adder_resnet20"),
        ("Adder-LeNet5", "got 'Adder-LeNet5', did you mean adder_lenet5? (`adderzoo list`"),
        ("resnt18", "got 'resnt18', did you mean resnet18? (`adderzoo list`"),
        (
            "adder_lenet5.digts",
            "adder_lenet5 has no tag 'digts', did you mean digits? (it has mnist, digits, mnist_u8; ",
        ),
        ("resnet18.a1_in1", "model resnet18 has no tag 'a1_in1', did you mean a1_in1k? (it has a1_in1k, "),
    ],
)
def test_misspelled_networks_and_tags_are_refused_with_what_may_have_been_meant(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same in a command, in Python, and for tags of this package in timm and torch.hub."""
    assert main(["train", "x", "-m", line]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=re.escape(message)):
        package.create_model(line)
    network, _, tag = line.partition(".")
    if network == "adder_lenet5":
        for create in (
            lambda: timm.create_model(line, pretrained=True),
            lambda: timm.create_model(network, pretrained_cfg=tag),
            lambda: torch.hub.load(ROOT, network, source="local", pretrained_cfg=tag),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                create()


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
