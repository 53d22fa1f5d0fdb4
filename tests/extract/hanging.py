"""A worker plugin in a module of its own: workers import what they are sent by its name."""

from __future__ import annotations

import signal
import time

from distributed import WorkerPlugin


class Hanging(WorkerPlugin):
    """A worker plugin.

    The second process that sets it up never comes to an end, and ignores SIGTERM, as extracting
    workers do.
    """

    name = "hanging"

    def __init__(self, folder):
        self.folder = folder

    def setup(self, worker):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if (self.folder / "first").exists():
            (self.folder / "second").touch()
            time.sleep(600)
        (self.folder / "first").touch()
