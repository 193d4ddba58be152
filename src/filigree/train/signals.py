"""SIGINT and SIGTERM while a run trains: the step is finished and the run saved before the process ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def terminate(number: int, frame: FrameType | None = None) -> NoReturn:
    """A handler that unwinds like an exception: `KeyboardInterrupt`, or `SystemExit` with the code 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


class StopRequest:
    """A signal that has asked the run to end: `number` is the signal's, 0 while none has come."""

    number = 0

    def __init__(self) -> None:
        self._process = os.getpid()

    def leave(self) -> None:
        """End here, if a signal asked for it."""
        number, self.number = self.number, 0
        if number:
            terminate(number)

    def note(self, number: int, frame: FrameType | None) -> None:
        """A handler that takes note; the second signal ends the run at once, and the first one a forked helper."""
        if self.number or os.getpid() != self._process:
            terminate(number)
        self.number = number


@contextmanager
def stop_on_signals(saves: bool) -> Iterator[StopRequest]:
    """Handle both signals for a while: by taking note where the run `saves` itself when asked, else by unwinding.

    Only in the main thread, where Python runs handlers, and only in place of what would end the process anyway: a
    handler of the user's own stays.
    """
    request, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, terminate):
                before[number] = signal.signal(number, request.note if saves else terminate)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    request.leave()  # the signal came after the last step
