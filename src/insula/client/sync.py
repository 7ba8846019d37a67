"""The same for programs without asyncio: ``insula.sync.disposable(…)``, ``insula.sync.qube(…)``.

::

    with insula.sync.disposable("debian-12") as qube:
        print(qube.run(["uname", "-a"], check=True).text)

Names, arguments and errors are those of :mod:`insula.client`. May be used by many threads at once, each waiting for
its own calls. The work is done by one event loop in a thread of its own, started with the first call. KeyboardInterrupt
ends the call that is waited for, as cancelling does there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from insula import client
from insula.client.machine import DEFAULT_COPY_ENTRIES, DEFAULT_COPY_LIMIT, DEFAULT_OUTPUT_LIMIT, Word
from insula.client.machine import Qube as AsyncQube
from insula.client.result import Result

T = TypeVar("T")

__all__ = ["Qube", "disposable", "qube"]


class Qube:
    """As :class:`insula.client.Qube`; every method returns when it is done."""

    def __init__(self, qube: AsyncQube) -> None:
        self._qube = qube

    @property
    def name(self) -> str:
        return self._qube.name

    def __repr__(self) -> str:
        return repr(self._qube)

    def start(self) -> None:
        _call(self._qube.start())

    def stop(self, *, force: bool = False) -> None:
        _call(self._qube.stop(force=force))

    def kill(self) -> None:
        _call(self._qube.kill())

    def is_running(self) -> bool:
        return _call(self._qube.is_running())

    def run(
        self,
        command: Sequence[Word],
        *,
        input: bytes = b"",
        user: str | None = None,
        timeout: float | None = None,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
        check: bool = False,
    ) -> Result:
        return _call(
            self._qube.run(
                command, input=input, user=user, timeout=timeout, output_limit=output_limit, check=check
            )
        )  # fmt: skip

    def copy_in(self, source: Path | str | bytes, target: str, *, timeout: float | None = None) -> None:
        _call(self._qube.copy_in(source, target, timeout=timeout))

    def copy_out(
        self,
        source: str,
        target: Path | str,
        *,
        limit: int = DEFAULT_COPY_LIMIT,
        max_entries: int = DEFAULT_COPY_ENTRIES,
        timeout: float | None = None,
    ) -> None:
        _call(self._qube.copy_out(source, target, limit=limit, max_entries=max_entries, timeout=timeout))


def qube(name: str) -> Qube:
    """As :func:`insula.client.qube`."""
    return Qube(client.qube(name))


@contextlib.contextmanager
def disposable(
    template: str | None = None,
    *,
    memory_mib: int | None = None,
    vcpus: int | None = None,
    network: str | None = None,
    timeout: float | None = None,
    cpu_time: float | None = None,
) -> Iterator[Qube]:
    """As :func:`insula.client.disposable`."""
    made = client.disposable(
        template, memory_mib=memory_mib, vcpus=vcpus, network=network, timeout=timeout, cpu_time=cpu_time
    )
    inner = _call(made.__aenter__())
    try:
        yield Qube(inner)
    finally:
        # Without the error: a KeyboardInterrupt of this thread has no business in the loop's, and the end is the same.
        _call(made.__aexit__(None, None, None))


# the loop


class _Loop:
    """An event loop in a thread, for one process: a forked child makes its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        # A daemon thread, so that the interpreter does not wait for it at its end; what it holds ends with the process.
        threading.Thread(target=self.loop.run_forever, name="insula", daemon=True).start()


_lock = threading.Lock()
_current: _Loop | None = None


def _loop() -> asyncio.AbstractEventLoop:
    global _current  # noqa: PLW0603 - one for the process
    with _lock:
        if _current is None or _current.pid != os.getpid():
            _current = _Loop()
        return _current.loop


def _call(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait for it; an interrupt cancels it and waits until it has undone its work."""
    loop = _loop()
    is_done = threading.Event()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        task = loop.create_task(work)
        task.add_done_callback(lambda _: is_done.set())
        tasks.append(task)

    loop.call_soon_threadsafe(begin)
    try:
        is_done.wait()
    except BaseException:
        # The task is made in a turn before this one.
        loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # noqa: PLW0108 - it is not there yet
        is_done.wait()
        raise
    return tasks[0].result()
