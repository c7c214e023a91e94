"""Spread independent tasks over processes."""

import importlib
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from typing import Any

from hybrid.models.errors import EngineUnavailableError

# The cores are taken by the processes; threads inside them would only get in each other's way.
_ONE_THREAD = {"NPROC": "1", "OMP_NUM_THREADS": "1"}
_XLA_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
# loky takes a process that has grown by 300 MB for one that leaks, and replaces it: compiled programs take more.
_GROWN = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e12"}


def run_tasks(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, Any], None, None]:
    """Call the function once per tuple of arguments and yield (index, result) as they finish.

    With one worker the calls run here, in order. With more they run in fresh processes started by loky, which also carries
    classes defined in a user's own script; an interrupt ends those processes at once.

    Parameters
    ----------
    function
        A function defined in an importable module.
    calls
        The arguments of each call.
    workers
        Number of processes.

    Raises
    ------
    EngineUnavailableError
        If a process ends before its time, or a part of the work cannot be sent to it.
    """
    if workers == 1 or len(calls) < 2:
        for index, arguments in enumerate(calls):
            yield index, function(*arguments)
        return
    loky = importlib.import_module("loky")
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_XLA_ONE_THREAD}".strip()}
    executor = loky.get_reusable_executor(
        max_workers=min(workers, len(calls)), timeout=60, env={**_ONE_THREAD, **_GROWN, **flags}
    )
    try:  # a process may break down while later calls are still being handed over
        futures = {executor.submit(function, *arguments): index for index, arguments in enumerate(calls)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException as error:
        executor.shutdown(wait=True, kill_workers=True)  # else this process may end before it has killed them
        if isinstance(error, loky.process_executor.TerminatedWorkerError):
            raise EngineUnavailableError(
                "a process that worked on a part has ended, as one does that takes more memory than there is: take fewer "
                "workers; where results are kept, the same call goes on from them"
            ) from None
        if isinstance(error, BrokenExecutor):
            raise EngineUnavailableError(
                f"a part of the work cannot be handed to another process ({error.__cause__ or error}): define laws where a new "
                "process can import them, or take workers=1"
            ) from error
        raise
