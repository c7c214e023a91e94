"""Tasks spread over processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
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


SCRIPT = """
import os, sys, time
sys.path.insert(0, {folder!r})
from test_parallel import lingering
from hybrid.amortized.interrupts import ending_gently
from hybrid.models.parallel import run_tasks

with ending_gently():
    for index, pid in run_tasks(lingering, [(0,), (0,), (60,), (60,)], 2):
        print(pid, flush=True)
"""


def lingering(seconds: int) -> int:
    time.sleep(seconds)
    return os.getpid()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_sigterm_leaves_no_process_behind() -> None:
    command = [sys.executable, "-c", SCRIPT.format(folder=str(Path(__file__).parent))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout is not None
        workers = {int(run.stdout.readline()), int(run.stdout.readline())}
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == -signal.SIGTERM
    for _ in range(100):  # another takes note of their end
        if not any(is_running(pid) for pid in workers):
            break
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)
