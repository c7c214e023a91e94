"""How many threads a computation is shared out among, and in which precision it is made."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread(alone: bool = True) -> Iterator[None]:
    """Run on one thread what is too small to be shared out: on a busy machine threads wait for one another, for long."""
    threads = torch.get_num_threads()
    if not alone or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def undisturbed(device: torch.device, small: bool) -> Iterator[None]:
    """Without the autocast of whoever calls, which would round the answer, and on one thread where the work is small."""
    with torch.autocast(device.type, enabled=False), one_thread(small):
        yield
