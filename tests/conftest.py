"""What all tests share."""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LARGE = 2**31  # bytes that a process of the tests may hold

# The weights that ship are tested, not those that whoever runs the tests has trained.
os.environ["HYBRID_CHECKPOINTS"] = os.path.join(tempfile.gettempdir(), "no-checkpoints-here")  # noqa: PTH118

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As many processes as there are cores run the tests: threads of each would wait for those of the others, for minutes.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread: small tensors gain nothing from more, and order of summation is fixed."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def resident() -> int:
    """Bytes of memory that this process holds, where the system says so."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.fixture(autouse=True)
def memory_goes_back() -> Iterator[None]:
    """The compiled programs of all tests together, and what glibc keeps of them, would fill a small machine."""
    yield
    if resident() > LARGE and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
