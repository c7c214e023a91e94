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

from hybrid.models.errors import InvalidArgumentError

#: what reading a damaged .npz file raises
DAMAGED = (OSError, KeyError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def cannot_write(path: Path, error: OSError) -> InvalidArgumentError:
    """What the user is told."""
    return InvalidArgumentError(f"cannot write {path}: {error.strerror or error}")


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
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a directory: give the name of a file")
    if path.exists() and not path.stat().st_mode & stat.S_IWUSR:
        raise InvalidArgumentError(f"{path} is there, and write-protected: give another name, or unprotect it")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InvalidArgumentError(f"there is no directory {path.parent}: create it first")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(path, error) from None


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
