"""torch's one global source of random numbers, borrowed and put back."""

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
