"""Spread independent calls: here, over processes of this machine, or over the workers of a Dask cluster."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

from hybrid.models.checks import as_integer
from hybrid.models.errors import EngineUnavailableError, InvalidArgumentError
from hybrid.models.parallel import run_tasks
from hybrid.output import quiet

MOST_WORKERS = 4096
CONNECT_SECONDS = 10
NO_WORKERS = (
    "the cluster at {0} has no workers as yet, and the work waits for one: start some with `dask worker {0} --nthreads 1`"
)


def _connect(address: str) -> tuple[Any, Any]:
    """Dask's module and a client of the cluster at an address."""
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise EngineUnavailableError(
            'a cluster needs Dask, which is not installed: pip install "distributed>=2025.7", or use workers=...'
        ) from None
    try:
        return distributed, distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgumentError(
            f"no Dask scheduler answers at {address!r} ({error}): start one with `dask scheduler`, workers with "
            "`dask worker ADDRESS --nthreads 1`, and give its address, such as tcp://host:8786"
        ) from None


def _over_cluster(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], address: str
) -> Generator[tuple[int, Any], None, None]:
    distributed, client = _connect(address)
    # Dask's client logs a lost connection at length, before the error below says it in a line.
    with client, quiet("distributed.client", logging.CRITICAL):
        futures = {client.submit(function, *arguments, pure=False): index for index, arguments in enumerate(calls)}
        try:
            try:  # only now: a cluster that adapts starts its workers when there is work
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except TimeoutError:
                warnings.warn(NO_WORKERS.format(address), stacklevel=2)
            for future in distributed.as_completed(list(futures), loop=client.loop):
                yield futures[future], future.result()
        except (distributed.comm.CommClosedError, distributed.CancelledError, distributed.KilledWorker) as error:
            raise EngineUnavailableError(
                f"the cluster at {address} was lost ({' '.join(str(error).split())[:200]}): see to its scheduler and workers; "
                "where results are kept, the same call goes on from them"
            ) from None
        finally:
            with contextlib.suppress(Exception):
                client.cancel(list(futures))


def spread(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int = 1, dask: str | None = None
) -> Generator[tuple[int, Any], None, None]:
    """Call the function once per tuple of arguments and yield (index, result) as they finish.

    Parameters
    ----------
    function
        A function defined in an importable module.
    calls
        The arguments of each call.
    workers
        Number of processes on this machine, each with one thread; 1 calls here, in order.
    dask
        Address of a Dask scheduler, such as tcp://host:8786, whose workers have Hybrid installed; used instead of processes.

    Raises
    ------
    InvalidArgumentError
        If workers is not a positive integer, both ways are asked for, or no scheduler answers.
    EngineUnavailableError
        If Dask is not installed.
    """
    workers = as_integer(workers, "workers", 1, MOST_WORKERS)
    if dask is not None and workers > 1:
        raise InvalidArgumentError("give workers or dask, not both: a cluster has its own workers")
    if dask is not None:
        return _over_cluster(function, calls, dask)
    return run_tasks(function, calls, workers)
