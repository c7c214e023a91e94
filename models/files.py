"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.models.errors import InvalidArgumentError

#: what reading a damaged .npz file raises
DAMAGED = (OSError, KeyError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def cannot_write(path: Path, error: OSError | ValueError) -> InvalidArgumentError:
    """What the user is told."""
    return InvalidArgumentError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def as_path(value: Any, name: str) -> Path:
    """What a user gives as the place of a file or a folder.

    Raises
    ------
    InvalidArgumentError
        If it is neither text nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidArgumentError(f"{name} must be the path of a file or a folder, got {value!r}")
    return Path(value)


def make_folder(folder: Path, wanted: Path | None = None) -> None:
    """Make a folder, and those above it, where they are not there.

    Raises
    ------
    InvalidArgumentError
        If it cannot be made; the message names `wanted`, a file that was to be in it, or else the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(wanted or folder, error) from None


def check_writable(path: Path) -> None:
    """Refuse a path where no file can be written: before the work, not after it.

    Raises
    ------
    InvalidArgumentError
        If it cannot.
    """
    try:
        is_folder, folder = path.is_dir(), Path(os.path.realpath(path)).parent
        is_protected = path.exists() and not path.stat().st_mode & stat.S_IWUSR
        is_missing = not folder.is_dir()
        if not (is_folder or is_protected or is_missing):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        raise cannot_write(path, error) from None
    if is_folder:
        raise InvalidArgumentError(f"{path} is a directory: give the name of a file")
    if is_protected:
        raise InvalidArgumentError(f"{path} is there, and write-protected: give another name, or unprotect it")
    if is_missing:
        raise InvalidArgumentError(f"there is no directory {path.parent}: create it first")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place only once it is complete.

    A link stays, and what it points to is replaced. A file that was there leaves its permissions.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    temporary, place = None, Path(os.path.realpath(path))
    try:
        name = place.with_name(f".{secrets.token_hex(8)}{path.suffix}")
        name.touch(exist_ok=False)  # with the permissions of a new file
        temporary = name
        yield temporary
        if place.exists():
            temporary.chmod(stat.S_IMODE(place.stat().st_mode))
        temporary.replace(place)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
