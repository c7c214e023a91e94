"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hybrid.models.errors import InvalidArgumentError


def cannot_write(path: Path, error: OSError) -> InvalidArgumentError:
    """What the user is told."""
    return InvalidArgumentError(f"cannot write {path}: {error.strerror or error}")


def check_writable(path: Path) -> None:
    """Refuse a path where no file can be written: before the work, not after it.

    Raises
    ------
    InvalidArgumentError
        If it cannot.
    """
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a directory: give the name of a file")
    folder = path.absolute().parent
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

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
