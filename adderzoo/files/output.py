"""Files that are written: checked before the work, and then replaced completely or not at all.

What is being written lies in a folder `.adderzoo-*` beside its destination, which is locked. A process that is killed
leaves the folder, but no lock: the next one that writes there removes it.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_PREFIX = ".adderzoo-"
_LOCK = ".adderzoo-lock"

# Pixels. The library says so on standard error itself, if it is tried.
_JPEG_SIDE = 65_500


# -------------------------------------------------------------------------------------------------------------- checks


def check_output(path: Path, name: str, endings: Collection[str] = ()) -> None:
    """Refuse a path that no file can be written to, before there is anything to write.

    Args:
        path: File to write, as :func:`write_atomically` takes it.
        name: The argument's, for messages.
        endings: How its name may end; any if empty.

    Raises:
        ValueError: if it ends otherwise, is no file, or its folder is none.
        OSError: if it, or its folder, cannot be written to.
    """
    if endings and path.suffix not in endings:
        raise ValueError(f"{name} must end in {' or '.join(endings)}, got {path}")
    if path.suffix == ".safetensors":
        check_text(path, name)
    if path.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {path}")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{name} {path} is write-protected")
    if _stream(path) is None:
        if path.exists() and not path.is_file():
            raise ValueError(f"{name} must be a file or a pipe, got the device or socket {path}")
        _check_folder(_target(path).parent, f"{name} {path}")


def check_text(path: Path, name: str) -> None:
    """Refuse a path that safetensors would not open: one that is no UTF-8.

    Raises:
        ValueError: naming the argument.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be a path in UTF-8, since safetensors opens no other, got {path}") from error


def check_output_folder(folder: Path, name: str) -> None:
    """Refuse a folder that no file can be written in, before there is anything to write.

    Args:
        folder: It is made when the first file is written, if it is not there.
        name: The argument's, for messages.

    Raises:
        ValueError: if it is no folder.
        OSError: if it cannot be made or written to.
    """
    _check_folder(folder, f"{name} {folder}")


def _check_folder(folder: Path, what: str) -> None:
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError(f"{what} cannot be written: {there} is no folder")
    try:
        trial = tempfile.mkdtemp(dir=there, prefix=_PREFIX)  # the rights alone do not tell, on some file systems
    except OSError as error:
        raise OSError(f"{what} cannot be written: no file can be made in {there}: {error.strerror}") from error
    with contextlib.suppress(FileNotFoundError):  # removed by another process, since it is not locked
        os.rmdir(trial)


def is_image_format(path: Path) -> bool:
    """Whether PIL writes and reads the format that a file's name ends in."""
    from PIL import Image

    format = Image.registered_extensions().get(path.suffix.lower())
    return format in Image.SAVE and format in Image.OPEN


def check_image_output(path: Path, name: str, size: tuple[int, int] = (1, 1), mode: str = "RGB") -> None:
    """Refuse a path that no image can be written to, before there is an image: its format is tried on two strips.

    Args:
        path: File to write, in the format that its name ends in.
        name: The argument's, for messages.
        size: (W, H) of the image.
        mode: PIL's: L, LA, RGB or RGBA.

    Raises:
        ValueError: as :func:`check_output`, if PIL cannot write and read the format, or if that has no images of this
            size or mode, or no alpha channel.
        OSError: as :func:`check_output`.
    """
    from PIL import Image

    check_output(path, name)
    format = Image.registered_extensions().get(path.suffix.lower())
    if not is_image_format(path):
        raise ValueError(f"{name} must end as an image file does that can be written, such as .png or .jpg, got {path}")
    width, height = size
    what = f"{name} {path} cannot hold an image of {width}x{height} pixels in {mode}"
    remedy = "; .png, .webp and .tif keep an alpha channel" if mode.endswith("A") else ""
    if format == "JPEG" and max(size) > _JPEG_SIDE:
        raise ValueError(f"{what}: JPEG has at most {_JPEG_SIDE} a side")
    for strip in ((width, 1), (1, height)):
        file = io.BytesIO()
        try:
            Image.new(mode, strip, (128,) * len(mode)).save(file, format)
            with Image.open(file) as image:
                kept = image.size == strip
                alpha = image.convert("RGBA").getchannel("A").tobytes()
        except Exception as error:  # formats raise nearly anything
            raise ValueError(f"{what}: {error}{remedy}") from error
        if not kept:
            raise ValueError(f"{what}: {format} has no such sizes")
        if remedy and not all(112 < value < 144 for value in alpha):
            raise ValueError(f"{what}: {format} has no alpha channel for it{remedy}")


# ------------------------------------------------------------------------------------------------------------- writing


def write_atomically(destination: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file by what `write` writes to the path that it is given, completely or not at all.

    A file that is there keeps its mode and, where the process may, its owner. One that is a link is written through. A
    pipe or a terminal, such as /dev/stdout, gets the whole content.

    Raises:
        OSError: naming the destination, if it cannot be written.
    """
    stream = _stream(destination)
    parent = _target(destination).parent if stream is None else Path(tempfile.gettempdir())
    try:
        with temporary_folder(parent) as folder:
            path = folder / destination.name
            write(path)
            if stream is None:
                _replace(path, _target(destination))
            else:
                with path.open("rb") as source, open(stream, "wb", closefd=isinstance(stream, Path)) as sink:
                    shutil.copyfileobj(source, sink)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and stream == 1:
            raise  # nobody reads on
        raise _named(error, destination, parent) from error


def _named(error: OSError, destination: Path, parent: Path) -> OSError:
    """The error with the name that the user knows, in the place of a temporary one."""
    if error.errno is None:  # of PyTorch, PIL and the like
        text = re.sub(rf"[^\s'\"]*{re.escape(_PREFIX)}[^/]*", str(destination.parent), str(error))
        return OSError(f"{destination} cannot be written: {text}")
    foreign = error.filename is not None and Path(error.filename) not in (parent, *parent.parents)
    if foreign and _PREFIX not in str(error.filename):
        return error
    return OSError(error.errno, error.strerror, str(destination))


def in_memory(write: Callable[[BinaryIO], Any]) -> Callable[[Path], Any]:
    """For :func:`write_atomically`: what writes a file in one go, as `write` writes it to memory.

    PyTorch's writer of zip files ends the process if the disk is full.
    """

    def write_file(path: Path) -> None:
        buffer = io.BytesIO()
        write(buffer)
        path.write_bytes(buffer.getbuffer())

    return write_file


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder for what is being written, which is removed at the end.

    Others that processes left there when they were killed are removed first.

    Raises:
        OSError: if it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    folder, lock = _make_locked(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_locked(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # another process took it for abandoned, before it was locked
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is ever taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_open(folder / _LOCK, lock):
            return folder, lock
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    with os.scandir(parent) as entries:
        folders = [
            Path(entry) for entry in entries if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
        ]
    for folder in folders:
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # just removed, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open(folder / _LOCK, lock):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            pass
        finally:
            os.close(lock)


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether the file is still there under its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _replace(path: Path, target: Path) -> None:
    if target.exists():
        old = target.stat()
        for owner in ((old.st_uid, -1), (-1, old.st_gid)):
            with contextlib.suppress(PermissionError):
                os.chown(path, *owner)
        path.chmod(stat.S_IMODE(old.st_mode))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)


def _target(path: Path) -> Path:
    """Where a link leads, of other paths the path itself.

    Raises:
        OSError: if links lead in a circle.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _stream(path: Path) -> Path | int | None:
    """What takes bytes one after the other, if a path is no file: this process's own stream, or a pipe or terminal."""
    try:
        found = path.stat()
    except OSError:
        return None
    for own in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.fstat(own)):
                return own
    return path if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode) else None
