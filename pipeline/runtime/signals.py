"""Asked to end: by Ctrl-C, or by the SIGTERM of a batch system, a container or a shutdown."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

NOTICE = (
    b"stopping: what is being computed is finished and written first; a second signal stops at "
    b"once\n"
)
# `timeout` and some launchers send a signal twice, to the process and to its group
ECHO_SECONDS = 1.0


class Terminated(BaseException):
    """SIGTERM, raised at the next bytecode so that `finally` clauses run."""


class Stop:
    """Whether a run was asked to end.

    What computes looks at `asked` between two batches and leaves what it has on disk; then `check`
    ends the run. Signals set it only within `listening`, and only when `gentle`: otherwise they
    raise where they arrive.
    """

    def __init__(self, *, gentle: bool = False):
        self.asked = False
        self.gentle = gentle
        self._error: type[BaseException] = KeyboardInterrupt
        self._since = 0.0

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if the run was asked to end."""
        if self.asked:
            raise self._error

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the first SIGINT or SIGTERM only sets `asked` and says so on stderr; the next
        raises.
        """
        if not self.gentle or threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, before[number] or signal.SIG_DFL)

    def _receive(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._since = True, now
            self._error = Terminated if number == signal.SIGTERM else KeyboardInterrupt
            os.write(2, NOTICE)  # no buffer of Python's: it may be in the middle of a line
        elif now - self._since > ECHO_SECONDS:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
