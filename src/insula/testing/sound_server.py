"""A real sound server without anybody to hear it: what is played is recorded, and what it hears is made of a tone."""

from __future__ import annotations

import math
import os
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from insula_proto.sound import CHANNELS, RATE

START_S = 120.0
HEARD = "heard"
SPOKEN = "spoken"
PERIOD_MS = 20


def tone(hertz: float, seconds: float) -> bytes:
    """As samples of :mod:`insula_proto.sound`."""
    levels = (int(12000 * math.sin(2 * math.pi * hertz * number / RATE)) for number in range(int(RATE * seconds)))
    return b"".join([struct.pack("<h", level) * CHANNELS for level in levels])


def share(samples: bytes, hertz: float) -> float:
    """How much of the energy of one channel is at a frequency: one line of the discrete Fourier transform, 0 to 1."""
    levels = [level for level, _ in struct.iter_unpack("<hh", samples[: len(samples) // 4 * 4])]
    energy = sum(level * level for level in levels)
    if not energy:
        return 0.0
    step = 2 * math.pi * hertz / RATE
    real = sum(level * math.cos(step * number) for number, level in enumerate(levels))
    imaginary = sum(level * math.sin(step * number) for number, level in enumerate(levels))
    return float(2 * (real**2 + imaginary**2) / (len(levels) * energy))


def loud(samples: bytes) -> bytes:
    """From the first sample that is not silence to the last."""
    frames = [samples[place : place + 4] for place in range(0, len(samples) // 4 * 4, 4)]
    places = [place for place, frame in enumerate(frames) if any(frame)]
    return b"".join(frames[places[0] : places[-1] + 1]) if places else b""


class SoundServer:
    """PulseAudio with a sink that leads nowhere; ``microphone`` is a tone that its source hears, in Hertz."""

    def __init__(self, microphone: float | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="insula-sound-"))
        self._microphone = microphone
        self._process: subprocess.Popen[bytes] | None = None
        self._recorder: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.recorded = bytearray()
        """What was played since the start."""

    @property
    def socket(self) -> Path:
        return self.folder / "pulse/native"

    @property
    def environment(self) -> dict[str, str]:
        """Of a desktop on which it is."""
        return {"PULSE_SERVER": f"unix:{self.socket}"}

    def __enter__(self) -> Self:
        modules = [
            "module-native-protocol-unix",
            f"module-null-sink sink_name={HEARD} rate={RATE}",
            f"module-null-sink sink_name={SPOKEN} rate={RATE}",
        ]
        if self._microphone is not None:
            modules.append(f"module-sine sink={SPOKEN} frequency={self._microphone:g}")
        own = {**os.environ, "HOME": str(self.folder), "PULSE_RUNTIME_PATH": str(self.socket.parent)}
        own.pop("PULSE_SERVER", None)
        self._process = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1", "--disable-shm=yes",
             "--log-level=error", *(f"--load={module}" for module in modules)],
            env=own,
        )  # fmt: skip
        end = time.monotonic() + START_S
        while subprocess.run(self._pactl("info"), env=self._client, capture_output=True, check=False).returncode:
            assert time.monotonic() < end, "no sound server"
            time.sleep(0.05)
        self.pactl("set-default-sink", HEARD)
        self.pactl("set-default-source", f"{SPOKEN}.monitor")
        self._recorder = subprocess.Popen(
            ["parec", "--raw", "--format=s16le", f"--rate={RATE}", "--channels=2", f"--latency-msec={PERIOD_MS}",
             f"--device={HEARD}.monitor"],
            env=self._client, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="what is heard", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in (self._recorder, self._process):
            if process is not None:
                process.terminate()
                process.wait()
        if self._reader is not None and self._recorder is not None and self._recorder.stdout is not None:
            self._reader.join()
            self._recorder.stdout.close()
        shutil.rmtree(self.folder)

    def _read(self) -> None:
        assert self._recorder is not None
        assert self._recorder.stdout is not None
        while data := self._recorder.stdout.read1(65536):  # type: ignore[attr-defined]
            self.recorded += data

    @property
    def _client(self) -> dict[str, str]:
        return {**os.environ, **self.environment, "HOME": str(self.folder)}

    def _pactl(self, *words: str) -> list[str]:
        return ["pactl", *words]

    def pactl(self, *words: str) -> str:
        """What the user does in the mixer."""
        done = subprocess.run(self._pactl(*words), env=self._client, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def streams(self) -> list[str]:
        """Names of what is played at present, as the mixer shows them."""
        return _names(self.pactl("list", "sink-inputs"))

    def recordings(self) -> list[str]:
        """Of what records; this one's own left out."""
        return [name for name in _names(self.pactl("list", "source-outputs")) if name != "parec"]


def _names(listed: str) -> list[str]:
    lines = [line.strip() for line in listed.splitlines()]
    return [line.partition('"')[2].rstrip('"') for line in lines if line.startswith("application.name = ")]


@contextmanager
def sound_server(microphone: float | None = None) -> Iterator[SoundServer]:
    with SoundServer(microphone) as running:
        yield running
