"""Tasks spread over processes."""

import os
import time
from typing import Any

import numpy as np
import pytest

from hybrid.models.errors import EngineUnavailableError
from hybrid.models.parallel import run_tasks

KEPT: list[np.ndarray] = []
LARGE = 50_000_000  # numbers, 400 MB: more than compiled programs take


def keeping(number: int) -> tuple[int, int]:
    """What compiling does: the process grows, and stays so."""
    if len(KEPT) == 1:
        KEPT.append(np.ones(LARGE))
    KEPT.append(np.ones(1))
    time.sleep(0.6)  # memory is looked at every second
    return number, os.getpid()


def test_a_worker_that_has_grown_keeps_its_programs() -> None:
    found = dict(run_tasks(keeping, [(number,) for number in range(10)], workers=2))
    assert [found[index][0] for index in range(10)] == list(range(10))
    assert len({pid for _, pid in found.values()}) <= 2


def failing(number: int) -> int:
    """Fail at one of the calls."""
    if number == 1:
        raise ValueError("one call fails")
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_call_is_raised_and_the_next_run_works(workers: int) -> None:
    calls = [(0,), (1,), (2,)]
    with pytest.raises(ValueError, match="one call fails"):
        list(run_tasks(failing, calls, workers))
    assert sorted(run_tasks(failing, [(0,), (2,), (3,)], workers)) == [(0, 0), (1, 2), (2, 3)]


def _refuse() -> None:
    raise ImportError("no module named 'mine'")


class Unreadable:
    """What another process cannot take in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def test_what_a_process_cannot_take_in_is_not_put_down_to_memory() -> None:
    with pytest.raises(EngineUnavailableError, match="cannot be handed to another process"):
        list(run_tasks(id, [(Unreadable(),), (Unreadable(),)], workers=2))
    assert sorted(run_tasks(abs, [(0,), (2,)], workers=2)) == [(0, 0), (1, 2)]
