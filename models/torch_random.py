"""What torch keeps for the whole process, its source of random numbers and its default precision, borrowed and put back."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.RLock()  # its distributions draw from a state that all threads share


@contextlib.contextmanager
def seeded(seed: int, device: Any = None) -> Iterator[None]:
    """Seed torch inside, on the CPU and on one device, one thread at a time; afterwards their states are as they were.

    `torch.manual_seed` would seed all devices that there are.
    """
    torch = importlib.import_module("torch")
    if device is None or device.type == "cpu":
        with _LOCK, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    module = torch.get_device_module(device)
    with _LOCK, torch.random.fork_rng(devices=[device], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        with module.device(device):
            module.manual_seed(seed)
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
