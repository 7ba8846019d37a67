"""``python3 -I -S …/sound/server.py FOLDER``: between the sound server of a user and the host, while the former runs.

``/usr/lib/insula/sound-server`` starts it; FOLDER has the FIFO the sound server writes into and that it reads.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from insula_agent.conveyor import enlarge
from insula_agent.loop import Loop
from insula_agent.sound.player import Player
from insula_agent.sound.recorder import Recorder
from insula_agent.syslog import SyslogCopy

SINK, SOURCE = "sink", "source"
LOCK = "lock"
FIFO_SIZE = 8192
"""Bytes, 43 ms: what one side is ahead of the other; a pipe is 64 KiB otherwise."""
START_S = 30.0
"""Seconds the sound server may take to start…"""
LOOK_S = 0.2
"""…and between two looks."""
EXIT_OK = 0
EXIT_USAGE = 64


class Server:
    def __init__(self, loop: Loop, folder: str) -> None:
        """:raise OSError:"""
        self._loop = loop
        self._syslog = SyslogCopy("insula-sound")
        fifo = os.open(os.path.join(folder, SINK), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        enlarge(fifo, FIFO_SIZE)
        self._source = os.path.join(folder, SOURCE)
        self._recorder: Recorder | None = None
        self._player = Player(loop, fifo, self._end, self._log)
        self._look_for_source(time.monotonic() + START_S)

    def _look_for_source(self, until: float) -> None:
        """The sound server makes that FIFO itself, when it starts."""
        try:
            fifo = os.open(self._source, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            if time.monotonic() < until:
                self._loop.after(LOOK_S, lambda: self._look_for_source(until))
            else:
                self._log("the sound server does not start")
                self._end()
            return
        enlarge(fifo, FIFO_SIZE)
        self._recorder = Recorder(self._loop, fifo)

    def _log(self, text: str) -> None:
        self._syslog.write(text.encode() + b"\n")

    def _end(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
        self._loop.stop(EXIT_OK)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        return EXIT_USAGE
    folder = arguments[0]
    lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # One that is about to end is waited for.
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.chdir("/")
    loop = Loop()
    Server(loop, folder)
    return loop.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
