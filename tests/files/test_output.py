"""What `adderzoo.files.output` promises of files that are written."""

import io
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fork_server import CONTEXT
from PIL import Image

from adderzoo.files import output
from adderzoo.files.output import (
    check_image_output,
    check_output,
    check_output_folder,
    in_memory,
    temporary_folder,
    write_atomically,
)


def write(text: str) -> Callable[[Path], int]:
    return lambda path: path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """Of all files in a folder; names alone of what else there is."""
    return {path.name: path.read_text() if path.is_file() else "" for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("error", [OSError("no"), RuntimeError("no"), KeyboardInterrupt(), ZeroDivisionError()])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_writer_that_fails_halfway_leaves_what_was_there(
    tmp_path: Path, error: BaseException, old: str | None
) -> None:
    def fail(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    destination = tmp_path / "a.txt"
    if old is not None:
        destination.write_text(old)
    with pytest.raises(type(error)):
        write_atomically(destination, fail)
    assert contents(tmp_path) == ({} if old is None else {"a.txt": old})


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    destination = tmp_path / "a.txt"
    destination.write_text("old")

    def look(path: Path) -> None:
        path.write_text("new")
        assert destination.read_text() == "old"

    with destination.open() as reader:
        write_atomically(destination, look)
        assert reader.read() == "old"  # replaced by another file, never overwritten
    assert contents(tmp_path) == {"a.txt": "new"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    write_atomically(path, write("new"))
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_a_file_that_is_replaced_keeps_its_owner_as_far_as_the_process_may_give_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    found = path.stat()
    calls: list[tuple[int, int]] = []

    def chown(path: Path, user: int, group: int) -> None:
        calls.append((user, group))
        if user != -1:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    write_atomically(path, write("new"))
    assert calls == [(found.st_uid, -1), (-1, found.st_gid)]
    assert path.read_text() == "new"


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.txt", write("new"))
        (tmp_path / "b.txt").write_text("any other")
    finally:
        os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_is_written_through(tmp_path: Path, there: bool, relative: bool) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    store.mkdir()
    folder.mkdir()
    if there:
        (store / "target").write_text("old")
    link = folder / "a.txt"
    link.symlink_to(Path("..") / "store" / "target" if relative else store / "target")
    names = []
    write_atomically(link, lambda path: names.append(path.name) or path.write_text("new"))
    assert names == ["a.txt"]  # whose ending says the format
    assert link.is_symlink()
    assert contents(store) == {"target": "new"}
    assert contents(folder) == {"a.txt": "new"}


def test_links_in_a_circle_are_refused_by_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(second)
    second.symlink_to(first)
    with pytest.raises(OSError, match=re.escape(str(first))):
        check_output(first, "json")
    with pytest.raises(OSError, match=re.escape(str(first))):
        write_atomically(first, write("new"))


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    os.mkfifo(path)
    check_output(path, "json", [".json"])
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, text=True) as reader:
        write_atomically(path, write("new"))
        assert reader.communicate(timeout=60)[0] == "new"
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


_TO_STDOUT = """
import runpy, sys
from pathlib import Path
files = runpy.run_path(sys.argv[1])  # without the package, whose imports take seconds
print("before", flush=True)
files["check_output"](Path("/dev/stdout"), "json")
files["write_atomically"](Path("/dev/stdout"), lambda path: path.write_text("content\\n"))
print("behind")
"""


@pytest.mark.parametrize("redirected", [True, False])
def test_dev_stdout_is_the_standard_output_wherever_that_goes(tmp_path: Path, redirected: bool) -> None:
    expected = "before\ncontent\nbehind\n"
    command = [sys.executable, "-c", _TO_STDOUT, output.__file__]
    if redirected:
        with (tmp_path / "log").open("w") as file:
            subprocess.run(command, stdout=file, check=True)
        assert contents(tmp_path) == {"log": expected}
    else:
        assert subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout == expected
    assert Path("/dev/stdout").is_symlink()


def test_a_device_is_written_to_and_never_replaced() -> None:
    check_output(Path("/dev/null"), "json")
    write_atomically(Path("/dev/null"), write("new"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_atomically(Path("/dev/full"), write("new"))
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@contextmanager
def nearly_full_disk() -> Iterator[None]:
    """No file can grow beyond 1 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("relative", [True, False])
def test_a_full_disk_is_said_of_the_path_that_the_user_knows(
    tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a.txt") if relative else tmp_path / "a.txt"
    path.write_text("old")
    with nearly_full_disk(), pytest.raises(OSError, match=re.escape(repr(str(path)))) as info:
        write_atomically(path, in_memory(lambda file: file.write(bytes(2000))))
    assert ".adderzoo-" not in str(info.value)
    assert contents(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda path: OSError(f"{path}: encoder error -2"), "{0} cannot be written: {0}: encoder error -2"),
        (lambda path: OSError(5, "Input/output error", str(path)), "[Errno 5] Input/output error: '{0}'"),
        (lambda path: FileNotFoundError(2, "No such file", "/other"), "[Errno 2] No such file: '/other'"),
    ],
)
def test_errors_name_the_users_path_unless_they_are_about_another(
    tmp_path: Path, error: Callable[[Path], OSError], message: str
) -> None:
    def fail(path: Path) -> None:
        raise error(path)

    destination = tmp_path / "a.png"
    with pytest.raises(OSError) as info:  # noqa: PT011
        write_atomically(destination, fail)
    assert str(info.value) == message.format(destination)


# ----------------------------------------------------------------------------------------------- what killed ones leave


def _hold(parent: Path, ready: "CONTEXT.Event") -> None:  # type: ignore[name-defined]
    with temporary_folder(parent) as folder:
        (folder / "half").write_text("half")
        ready.set()
        time.sleep(600)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_was_writing_is_removed_by_the_next_but_never_what_a_living_one_writes(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / ".adderzoo-of-another-version").mkdir()
    (tmp_path / ".adderzoo-file").write_text("no folder")
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    (held,) = (path for path in tmp_path.iterdir() if (path / "half").exists())
    write_atomically(tmp_path / "a.txt", write("new"))
    assert contents(tmp_path) == {"a.txt": "new", ".adderzoo-file": "no folder", held.name: ""}
    assert (held / "half").read_text() == "half"
    os.kill(process.pid or 0, number)
    process.join(60)
    write_atomically(tmp_path / "a.txt", write("newer"))
    assert contents(tmp_path) == {"a.txt": "newer", ".adderzoo-file": "no folder"}


def test_a_folder_within_a_folder_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as outer:
        (outer / "kept").write_text("kept")
        write_atomically(tmp_path / "a.txt", write("new"))
        assert contents(outer)["kept"] == "kept"
    assert contents(tmp_path) == {"a.txt": "new"}


def _write_often(parent: Path, name: str) -> None:
    for number in range(20):
        write_atomically(parent / name, write(f"{name} {number}"))


def test_processes_that_write_in_one_folder_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    processes = [CONTEXT.Process(target=_write_often, args=(tmp_path, name)) for name in ("a", "b", "c", "d")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert contents(tmp_path) == {name: f"{name} 19" for name in ("a", "b", "c", "d")}


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("path", "endings", "message"),
    [
        ("a.txt", [".json", ".csv"], "json must end in .json or .csv, got {0}"),
        ("folder.json", [".json"], "json must be a file, got the folder {0}"),
        ("file/a.json", [".json"], "json {0} cannot be written: {1}/file is no folder"),
        ("file/deeper/a.json", [".json"], "json {0} cannot be written: {1}/file is no folder"),
        (
            "\udcff.safetensors",
            [".safetensors"],
            "json must be a path in UTF-8, since safetensors opens no other, got {0}",
        ),
        ("nowhere/a.json", [".json"], "json {0} cannot be written: {1}/nowhere is no folder"),
    ],
)
def test_a_path_that_no_file_can_be_written_to_is_refused_by_name(
    tmp_path: Path, path: str, endings: list[str], message: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(ValueError, match=re.escape(message.format(tmp_path / path, tmp_path))):
        check_output(tmp_path / path, "json", endings)
    assert {each.name for each in tmp_path.iterdir()} == {"folder.json", "file", "nowhere"}


@pytest.mark.parametrize("path", ["a.json", "deep/er/a.json"])
def test_a_path_that_can_be_written_to_stays_untouched(tmp_path: Path, path: str) -> None:
    check_output(tmp_path / path, "json", [".json"])
    check_output_folder(tmp_path / path, "plots")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old.json").write_text("old")
    check_output(tmp_path / "old.json", "json", [".json"])
    assert contents(tmp_path) == {"old.json": "old"}


def test_a_folder_that_takes_no_files_is_refused_by_name() -> None:
    message = "json /proc/a.json cannot be written: no file can be made in /proc"  # not even by root
    with pytest.raises(OSError, match=message):
        check_output(Path("/proc/a.json"), "json")
    with pytest.raises(OSError, match="plots /proc/deep/er cannot be written: no file can be made in /proc"):
        check_output_folder(Path("/proc/deep/er"), "plots")


def test_a_write_protected_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for all users but root
    with pytest.raises(PermissionError, match=re.escape(f"json {path} is write-protected")):
        check_output(path, "json")


def test_a_block_device_or_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a"))
        with pytest.raises(ValueError, match="json must be a file or a pipe, got the device or socket"):
            check_output(tmp_path / "a", "json")


# Those that PIL reads only, or writes only, or does not know.
@pytest.mark.parametrize("name", ["a.psd", "a.pdf", "a.xcf", "a", "a.txt", ".png"])
def test_an_ending_of_no_image_that_can_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="OUT must end as an image file does that can be written, such as"):
        check_image_output(tmp_path / name, "OUT")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("ending", [".png", ".jpg", ".JPG", ".jfif", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".tga"])
def test_an_alpha_channel_is_taken_by_the_formats_that_give_it_back(tmp_path: Path, ending: str, mode: str) -> None:
    takes = ending in (".png", ".webp", ".tif", ".tga") or not mode.endswith("A")
    path = tmp_path / f"a{ending}"
    if not takes:
        with pytest.raises(ValueError, match=re.escape(f"OUT {path} cannot hold an image of 20x10 pixels in {mode}")):
            check_image_output(path, "OUT", (20, 10), mode)
        return
    check_image_output(path, "OUT", (20, 10), mode)
    Image.linear_gradient("L").resize((20, 10)).convert(mode).save(path)
    assert Image.open(path).size == (20, 10)


@pytest.mark.parametrize(
    ("ending", "most"), [(".webp", 16_383), (".jpg", 65_500), (".jfif", 65_500), (".gif", 65_535), (".ico", 256)]
)
@pytest.mark.parametrize("wide", [True, False])
def test_images_are_as_large_as_their_format_can_be(tmp_path: Path, ending: str, most: int, wide: bool) -> None:
    path = tmp_path / f"a{ending}"

    def size(side: int) -> tuple[int, int]:
        return (side, 8) if wide else (8, side)

    check_image_output(path, "OUT", size(most))
    larger = "x".join(map(str, size(most + 1)))
    with pytest.raises(ValueError, match=re.escape(f"OUT {path} cannot hold an image of {larger} pixels in RGB")):
        check_image_output(path, "OUT", size(most + 1))


def test_nothing_is_written_by_a_check_of_an_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_image_output(tmp_path / "a.png", "OUT", (2000, 2000), "RGBA")
    with pytest.raises(ValueError, match="at most 65500"):
        check_image_output(tmp_path / "a.jpg", "OUT", (70_000, 1))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_what_is_written_in_memory_is_what_the_file_gets(tmp_path: Path) -> None:
    def fill(file: io.BufferedIOBase) -> None:
        file.write(b"123456")
        file.seek(2)
        file.write(b"ab")

    write_atomically(tmp_path / "a", in_memory(fill))
    assert (tmp_path / "a").read_bytes() == b"12ab56"
