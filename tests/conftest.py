"""What all tests share."""

import os
import tempfile
from collections.abc import Iterator

import pytest

# The weights that ship are tested, not those that whoever runs the tests has trained.
os.environ["HYBRID_CHECKPOINTS"] = os.path.join(tempfile.gettempdir(), "no-checkpoints-here")  # noqa: PTH118

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
