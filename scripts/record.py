#!/usr/bin/env python3
"""Play a scene and write down what terminals showed, with times: for the README and for demonstrations.

    .venv/bin/python scripts/record.py SCENE > transcript.txt
    .venv/bin/python scripts/record.py SCENE --svg docs/recordings/NAME.svg

The left terminal runs commands, on the right is who asks somebody: ``insula prompt --terminal``, and programs of qubes.
A scene is lines of text:

    # a comment                     = HEADING
    $ COMMAND                       run it on the left and wait for its end
    & COMMAND                       start it on the left
    wait                            wait for its end
    prompt                          start the prompt on the right
    answer TEXT                     when it asks and takes answers: type TEXT and Enter there
    beside COMMAND                  start a further program on the right
    reply TEXT                      when it asks "yes or no?": type TEXT and Enter there
    ( COMMAND                       run it and show nothing of it: what the scene needs, or leaves

Commands run in bash with INSULA_* of the caller, one at a time, on a terminal without colours. The exit code is that of
the first command that failed, so that a transcript never shows what does not work.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

from recording import Kind, Line, svg

WIDTH = 100
RIGHT = 36
"""Column of the right terminal's text."""
WAIT_S = 300.0
READING_S = 1.0
"""A person reads a question before they answer it."""
PROMPT_READY = "Ctrl-C ends it."
ASKS = "Number to allow, or deny: "
ASKS_TO_CONFIRM = "yes or no? "
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
        self._begin = 0.0
        """When the first line was shown."""
        self._left: Terminal | None = None
        self._prompt: Terminal | None = None
        self._beside: Terminal | None = None
        self.lines: list[Line] = []

    def play(self, scene: str) -> int:
        """Exit code. :raise ValueError: a line that is none. :raise TimeoutError:"""
        try:
            for line in filter(None, map(str.strip, scene.splitlines())):
                code = self._step(*line.partition(" ")[::2])
                if code:
                    return code
            return 0
        finally:
            for terminal in (self._left, self._prompt, self._beside):
                if terminal is not None:
                    terminal.end()

    def _step(self, word: str, rest: str) -> int:
        match word:
            case "#":
                return 0
            case "(":
                return subprocess.run(["bash", "-c", rest], check=False, stdout=subprocess.DEVNULL).returncode
            case "=":
                self._show(Kind.HEADING, rest)
            case "$" | "&":
                self._show(Kind.COMMAND, f"$ {rest}")
                self._left = Terminal(["bash", "-c", rest])
                return self._end_of_command() if word == "$" else 0
            case "wait":
                return self._end_of_command()
            case "prompt":
                self._prompt = Terminal(["insula", "prompt", "--terminal"])
                self._until(self._prompt, PROMPT_READY)
            case "beside":
                self._beside = Terminal(["bash", "-c", rest])
            case "answer":
                self._type(self._prompt, ASKS, rest)
            case "reply":
                self._type(self._beside, ASKS_TO_CONFIRM, rest)
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

    def _type(self, terminal: Terminal | None, question: str, text: str) -> None:
        assert terminal is not None, "nobody asks"
        self._until(terminal, question)
        time.sleep(READING_S)
        terminal.seen = ""
        terminal.type(text + "\r")

    def _until(self, terminal: Terminal, text: str) -> None:
        """The terminal has written it."""
        end = time.monotonic() + WAIT_S
        while text not in terminal.seen:
            self._look()
            if time.monotonic() > end or terminal.process.poll() is not None:
                raise TimeoutError(f"nobody wrote {text!r}, but {terminal.seen[-200:]!r}")

    def _look(self) -> None:
        for terminal in (self._left, self._prompt, self._beside):
            if terminal is not None:
                for line in terminal.lines(0.02):
                    self._show(Kind.LEFT if terminal is self._left else Kind.RIGHT, line)

    def _show(self, kind: Kind, text: str) -> None:
        if not text:
            return
        now = time.monotonic()
        self._begin = self._begin or now
        line = Line(now - self._begin, kind, text)
        self.lines.append(line)
        if kind is Kind.HEADING:
            sys.stdout.write(f"\n== {text}\n")
        else:
            indent = f"{' ' * RIGHT}| " if kind is Kind.RIGHT else ""
            sys.stdout.write(f"{line.seconds:6.1f} s  {indent}{text}\n")
        sys.stdout.flush()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("scene", type=Path)
    arguments.add_argument("--svg", type=Path, help="write a picture that plays, if all went well")
    chosen = arguments.parse_args()
    recorder = Recorder()
    scene = chosen.scene.read_text(encoding="utf-8")
    code = recorder.play(scene)
    if code == 0 and chosen.svg is not None:
        headings = [line.text for line in recorder.lines if line.kind is Kind.HEADING]
        chosen.svg.write_text(svg(recorder.lines, "; ".join(headings)), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
