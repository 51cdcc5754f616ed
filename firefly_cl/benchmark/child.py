"""A child process: it is given one line, answers in lines of JSON, and stops with its parent."""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

GRACE = 15.0
"""Seconds that a child has to stop in, once it is told to."""

Answer = Mapping[str, Any]

_BOOT = """\
import importlib, json, sys
sys.path[:], module, function = json.loads(sys.argv[1])
getattr(importlib.import_module(module), function)()
"""


class Child:
    """A fresh process of this Python that calls `entry` (module, function), which has to `serve`.

    It stops when its standard input ends: when it is told to, and when this process dies.
    """

    def __init__(
        self,
        entry: tuple[str, str],
        line: str,
        hear: Callable[[Answer | None], None],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`hear`: called in a thread with each answer, and with None when the child has ended."""
        self._said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps([sys.path, *entry])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **(environ or {})},
            start_new_session=True,  # Ctrl-C is for this process, which stops its children
        )
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it died: its exit is noticed below
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        threading.Thread(target=self._listen, args=(hear,), daemon=True).start()

    def _listen(self, hear: Callable[[Answer | None], None]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError):  # cut off by a kill
                    hear(json.loads(line))
        self.process.wait()
        hear(None)

    def tell_to_stop(self) -> None:
        """End its input."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def death(self, memory: str = "") -> str:
        """How it ended, in a few words; `memory`: what to do where memory may have run out."""
        code = self.process.returncode
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            hint = f" (out of memory? {memory})" if memory and name == "SIGKILL" else ""
            return f"its process was killed by {name}{hint}"
        last = self.last_words().strip().rpartition("\n")[2]
        return f"its process ended with code {code}" + (f" ({last[:200]})" if last else "")

    def last_words(self, limit: int = 10_000) -> str:
        """The end of what it and its libraries printed."""
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - limit))
        return self._said.read().decode(errors="replace")


def stop(children: Sequence[Child]) -> None:
    """Stop them: all at once, and by force those that do not, or at another Ctrl-C."""
    for child in children:
        child.tell_to_stop()
    try:
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(GRACE)
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()


def serve(act: Callable[[str, Callable[[Answer], None]], None]) -> None:
    """Be a child: `act` on the line that was given; exit 130 where the input ends before.

    `act` gets the line and what sends an answer.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    given = open(0, "rb", buffering=0, closefd=False)  # a buffer would be locked at exit
    line = given.readline().decode()

    def stop_with_the_input() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        _thread.interrupt_main()
        time.sleep(GRACE - 5)
        os._exit(130)

    def answer(told: Answer) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent has died: stopped in a moment
            print(json.dumps(told), file=answers, flush=True)

    threading.Thread(target=stop_with_the_input, daemon=True).start()
    try:
        act(line, answer)
    except KeyboardInterrupt:
        sys.exit(130)
