"""Chromium without a window, driven over its own debugging pipe: a page at any width, light, dark
or printed, and what its scripts answer. Needs no driver and no network.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ANSWER_SECONDS = 100  # that a loaded machine may take for one answer
READ_BYTES = 1 << 16
# Chromium reads commands from the descriptor 3 and answers on 4.
PIPED = 'exec "$@" 3<&"$0" 4>&"$ANSWERS"'


class Browser:
    """One page of a running Chromium. `complaints` has what its console and network said."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.numbers, self.buffer = itertools.count(1), b""
        self.session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The answer to one command of the DevTools protocol."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
        raise AssertionError(f"{method}: no answer")

    def show(self, path: Path, width: int, *, dark: bool = False, media: str = "") -> None:
        """Load a page anew at a width in CSS pixels."""
        self.complaints.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=path.as_uri())
        loaded = "new Promise(done => document.readyState === 'complete' ? done() : "
        self.ask(f"{loaded} addEventListener('load', () => done()))")
        assert self.ask("[location.pathname, innerWidth]") == [str(path), width]

    def ask(self, script: str) -> Any:
        """The value of an expression of JavaScript; that of a promise is waited for."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **wanted)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _messages(self) -> Iterator[dict[str, Any]]:
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            message, end, rest = self.buffer.partition(b"\0")
            if end:
                self.buffer = rest
                found = json.loads(message)
                self._hear(found)
                yield found
                continue
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.answers], [], [], left)[0]:
                return
            piece = os.read(self.answers, READ_BYTES)
            if not piece:
                return
            self.buffer += piece

    def _hear(self, message: dict[str, Any]) -> None:
        told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        if message.get("method") in told:
            self.complaints.append(json.dumps(message["params"])[:2000])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile, ended with the context."""
    assert CHROMIUM is not None
    for_it, commands = os.pipe()
    answers, from_it = os.pipe()
    asked = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    asked += ["--hide-scrollbars", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", PIPED, str(for_it), CHROMIUM, *asked],
        env={**os.environ, "ANSWERS": str(from_it)},
        pass_fds=(for_it, from_it),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(for_it)
    os.close(from_it)
    try:
        yield Browser(commands, answers)
    finally:
        process.terminate()
        process.wait(timeout=ANSWER_SECONDS)
        os.close(commands)
        os.close(answers)
