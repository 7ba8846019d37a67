#!/usr/bin/env python3
"""Play a scene and write down what two terminals showed, with times: for the README and for demonstrations.

    .venv/bin/python scripts/record.py SCENE > transcript.txt

The left terminal runs commands, the right one is where ``insula prompt --terminal`` asks. A scene is lines of text:

    # a comment                     = HEADING
    $ COMMAND                       run it on the left and wait for its end
    & COMMAND                       start it on the left
    wait                            wait for its end
    prompt                          start the prompt on the right
    answer TEXT                     when it asks and takes answers: type TEXT and Enter there

Commands run in bash with INSULA_* of the caller, one at a time, on a terminal without colours. The exit code is that of
the first command that failed, so that a transcript never shows what does not work.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

WIDTH = 100
RIGHT = 36
"""Column of the right terminal's text."""
WAIT_S = 300.0
READING_S = 1.0
"""A person reads a question before they answer it."""
PROMPT_READY = "Ctrl-C ends it."
ASKS = "Number to allow, or deny: "
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x07")


class Terminal:
    """A program on a terminal of its own, and what it has written."""

    def __init__(self, command: list[str]) -> None:
        self._descriptor, inner = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": str(WIDTH), "LINES": "40"}
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
        )
        os.close(inner)
        self._unshown = ""
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def lines(self, wait_s: float) -> list[str]:
        """Complete lines that came, waiting at most so long for more."""
        if not select.select([self._descriptor], [], [], wait_s)[0]:
            return []
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the program is gone
            data = b""
        text = _ESCAPES.sub("", data.decode("utf-8", "replace"))
        self.seen += text
        *complete, self._unshown = (self._unshown + text).split("\n")
        if not data and self._unshown:
            complete, self._unshown = [self._unshown], ""
        # Of a line that is written over and over, the last version counts.
        return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in complete]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self._descriptor)


class Recorder:
    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._left: Terminal | None = None
        self._right: Terminal | None = None

    def play(self, scene: str) -> int:
        """Exit code. :raise ValueError: a line that is none. :raise TimeoutError:"""
        try:
            for line in filter(None, map(str.strip, scene.splitlines())):
                code = self._step(*line.partition(" ")[::2])
                if code:
                    return code
            return 0
        finally:
            for terminal in (self._left, self._right):
                if terminal is not None:
                    terminal.end()

    def _step(self, word: str, rest: str) -> int:
        match word:
            case "#":
                return 0
            case "=":
                sys.stdout.write(f"\n== {rest}\n")
            case "$" | "&":
                self._show(0, f"$ {rest}")
                self._left = Terminal(["bash", "-c", rest])
                return self._end_of_command() if word == "$" else 0
            case "wait":
                return self._end_of_command()
            case "prompt":
                self._right = Terminal(["insula", "prompt", "--terminal"])
                self._until(PROMPT_READY)
            case "answer":
                assert self._right is not None, "no prompt was started"
                self._until(ASKS)
                time.sleep(READING_S)
                self._right.seen = ""
                self._right.type(rest + "\r")
            case _:
                raise ValueError(f"not a line of a scene: {word} {rest}")
        return 0

    def _end_of_command(self) -> int:
        """Of the left terminal; shows what both write meanwhile."""
        terminal = self._left
        assert terminal is not None, "no command was started"
        end = time.monotonic() + WAIT_S
        while terminal.process.poll() is None:
            self._look()
            if time.monotonic() > end:
                raise TimeoutError(f"a command did not end within {WAIT_S:g} s")
        self._look()
        terminal.end()
        self._left = None
        return terminal.process.returncode

    def _until(self, text: str) -> None:
        """The right terminal has written it."""
        assert self._right is not None
        end = time.monotonic() + WAIT_S
        while text not in self._right.seen:
            self._look()
            if time.monotonic() > end or self._right.process.poll() is not None:
                raise TimeoutError(f"the prompt did not write {text!r}")

    def _look(self) -> None:
        for terminal, column in ((self._left, 0), (self._right, RIGHT)):
            if terminal is not None:
                for line in terminal.lines(0.02):
                    self._show(column, line)

    def _show(self, column: int, line: str) -> None:
        if line:
            sys.stdout.write(f"{time.monotonic() - self._begin:6.1f} s  {' ' * column}{'| ' if column else ''}{line}\n")
            sys.stdout.flush()


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    return Recorder().play(Path(sys.argv[1]).read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
