"""Work that an interruption waits for, and requests to end that are interruptions."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 0.05  # seconds after which an interruption that was lost is sent once more


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Ctrl-C takes effect after the block, not inside it: what it changes is changed whole, and can be saved.

    So does a SIGTERM that is handled, as in `ending_gently`.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for late, frame in came[:1]:
        handlers[signal.Signals(late)](late, frame)


@contextlib.contextmanager
def ending_gently() -> Iterator[None]:
    """SIGTERM, as `kill` and batch systems send it, acts as Ctrl-C does inside the block: states are saved, workers end.

    The process still ends by that signal, once all is done. Either may come while Python runs what cannot raise, such as the
    callbacks of its garbage collector that JAX installs; it would be printed and forgotten, and is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def send_again(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGTERM if came else signal.SIGINT
        threading.Timer(AGAIN, _thread.interrupt_main, (number,)).start()  # not from here, where it would be lost again

    before, hook = signal.signal(signal.SIGTERM, interrupt), sys.unraisablehook
    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGTERM)
