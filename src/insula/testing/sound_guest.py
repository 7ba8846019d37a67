"""Sound of a qube without a machine: the files a template has, run here, whose calls go to a socket of the test's."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from insula_proto.sound import RATE

SOURCES = Path(__file__).parents[2]
SCRIPT = SOURCES / "insula_agent/rootfs/usr/lib/insula/sound-server"
START_S = 120.0
END_S = 120.0
EXIT_REFUSED = 126

CLIENT = """\
import os, socket, sys, threading
service = sys.argv[-1]
try:
    there = socket.socket(socket.AF_UNIX)
    there.connect(os.path.join({folder!r}, service))
except OSError:
    sys.exit({refused})
def say():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=say, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


def client(folder: Path) -> Path:
    """A ``qrexec-client-vm`` whose calls are connections to the socket in ``folder`` that has the service's name."""
    path = folder / "qrexec-client-vm"
    path.write_text(f"#!{sys.executable}\n{CLIENT.format(folder=str(folder), refused=EXIT_REFUSED)}")
    path.chmod(0o755)
    return path


class SoundGuest:
    """A sound server as that of a qube; calls to the host are connections to ``calls / SERVICE``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="insula-guest-"))
        self.calls = self.folder / "calls"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        own = {**os.environ, "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        own["QREXEC_CLIENT_PATH"] = str(self.calls / "qrexec-client-vm")
        for name in ("PULSE_SERVER", "PULSE_RUNTIME_PATH"):
            own.pop(name, None)
        return own

    def __enter__(self) -> Self:
        self.calls.mkdir()
        client(self.calls)
        script = self.folder / "sound-server"
        script.write_text(SCRIPT.read_text().replace("/usr/lib/insula/insula_agent", str(SOURCES / "insula_agent")))
        self._process = subprocess.Popen(
            ["/bin/sh", script, "--daemonize=no", "--use-pid-file=no"], env=self.environment
        )
        end = time.monotonic() + START_S
        while subprocess.run(["pactl", "info"], env=self.environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < end, "no sound server"
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._wait_for_the_other()
        shutil.rmtree(self.folder)

    def _wait_for_the_other(self) -> None:
        """What stands between that server and the host ends by itself."""
        lock = os.open(self.folder / "insula-sound/lock", os.O_RDWR)
        try:
            end = time.monotonic() + END_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    assert time.monotonic() < end, "it does not end with the sound server"
                    time.sleep(0.05)
                else:
                    return
        finally:
            os.close(lock)

    def play(self, samples: bytes) -> subprocess.Popen[bytes]:
        """A program that plays; it ends when all was taken."""
        words = ["paplay", "--raw", "--format=s16le", f"--rate={RATE}", "--channels=2"]
        path = self.folder / "samples"
        path.write_bytes(samples)
        return subprocess.Popen([*words, path], env=self.environment)

    def record(self) -> subprocess.Popen[bytes]:
        """A program that records, until it is ended."""
        words = ["parec", "--raw", "--format=s16le", f"--rate={RATE}", "--channels=2", "--latency-msec=20"]
        return subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE)
