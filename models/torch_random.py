"""What torch keeps for the whole process, its source of random numbers and its default precision, borrowed and put back."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.RLock()  # its distributions draw from a state that all threads share


@contextlib.contextmanager
def seeded(seed: int, device: Any = None) -> Iterator[None]:
    """Seed torch inside, one thread at a time; afterwards its state is as it was, that of a CUDA device too."""
    torch = importlib.import_module("torch")
    devices = [device] if device is not None and device.type == "cuda" else []
    with _LOCK, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Tensors made inside without a dtype have 32 bits, whatever torch's default is here; one thread at a time."""
    torch = importlib.import_module("torch")
    with _LOCK:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
