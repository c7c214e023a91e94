"""What a request to end does to work that is under way."""

import signal
import subprocess
import sys

import pytest

from hybrid.amortized.interrupts import ending_gently

SCRIPT = """
import os, signal, time
from hybrid.amortized.interrupts import undivided
from hybrid.cli import main

@main.command("work")
def work():
    try:
        with undivided():
            os.kill(os.getpid(), signal.{sent})
            print("whole", flush=True)
        time.sleep(60.0)
    finally:
        print("saved", flush=True)

main(["work"])
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["in the foreground", "in the background"])
def test_sigterm_ends_a_command_as_an_interruption_does(ignored: bool) -> None:
    # A shell has what it starts with & ignore Ctrl-C.
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if ignored else []
    command = [*shell, sys.executable, "-c", SCRIPT.format(sent="SIGTERM")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.stdout.split() == ["whole", "saved"], found.stderr
    assert found.returncode == -signal.SIGTERM, found.stderr


def test_sigint_is_what_it_was() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT.format(sent="SIGINT")], capture_output=True, text=True, timeout=120)
    assert found.stdout.split() == ["whole", "saved"]
    assert (found.returncode, found.stderr.split()) == (1, ["Aborted!"])


def test_the_handler_of_before_comes_back() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with ending_gently(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


LOST = """
import signal, sys, time
from hybrid.amortized.interrupts import ending_gently

class Late:
    def __del__(self):  # what is raised here is printed and forgotten
        signal.raise_signal(signal.{sent})

with ending_gently():
    try:
        late = Late()
        del late
        for _ in range(1000):
            time.sleep(0.01)
        print("forgotten")
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 0), ("SIGTERM", -signal.SIGTERM)])
def test_an_interruption_that_comes_where_nothing_can_be_raised_is_not_lost(sent: str, code: int) -> None:
    found = subprocess.run([sys.executable, "-c", LOST.format(sent=sent)], capture_output=True, text=True, timeout=120)
    assert (found.stdout.split(), found.returncode) == (["interrupted"], code), found.stderr
