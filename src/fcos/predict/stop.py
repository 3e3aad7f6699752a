"""Ctrl-C and SIGTERM stop after the current step; a second one stops immediately."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context in which signals are recorded instead of ending the process.

    Args:
        announce: tell the user that the signal arrived (only one process should).
        after: what is finished before stopping.

    Attributes:
        number: of the signal received; 0: none.
    """

    def __init__(self, *, announce: bool = True, after: str = "step") -> None:
        self.announce, self.after, self.number = announce, after, 0
        self.former: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self.former = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        if self.announce:  # not print: the signal may arrive in the middle of a print
            os.write(2, f"\nstopping after this {self.after}\n".encode())

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
