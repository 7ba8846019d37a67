"""The agent's event loop: epoll, timers, one hook before each wait.

``asyncio`` would cost more to import under software emulation than the agent takes to start; this is all of it the
agent needs. Handlers may be called for a descriptor without anything to do (a number can be reused while its last
event is still under way), so they read and write without blocking and take EAGAIN for an answer.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
EDGE = select.EPOLLET
"""Added to an interest: call once for each change, not as long as something is there."""


class Timer:
    """Handle of :meth:`Loop.after`."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._interest: dict[int, int] = {}
        self._timers: list[Timer] = []
        self._before_wait: list[Callable[[], None]] = []
        self._exit_code: int | None = None

    def before_wait(self, callback: Callable[[], None]) -> None:
        """Call this each time before waiting: the place to flush what the handlers have queued."""
        self._before_wait.append(callback)

    def watch(self, fd: int, interest: int, handler: Callable[[int], None]) -> None:
        """Call ``handler(events)`` when one of ``interest`` (or HANGUP) is there. Repeat it to change either."""
        if fd not in self._handlers:
            self._epoll.register(fd, interest)
        elif self._interest[fd] != interest:
            self._epoll.modify(fd, interest)
        self._handlers[fd] = handler
        self._interest[fd] = interest

    def forget(self, fd: int) -> None:
        """Stop watching, before the descriptor is closed; forgotten already is fine."""
        if self._handlers.pop(fd, None) is not None:
            del self._interest[fd]
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, callback)
        self._timers.append(timer)
        return timer

    def stop(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def run(self) -> int:
        """Run until :meth:`stop`; return its code."""
        while self._exit_code is None:
            timeout = self._run_timers()
            for callback in self._before_wait:
                callback()
            # Any of these may have been the one that stops the loop; nothing may come to wake it again.
            for fd, events in self._epoll.poll(timeout if self._exit_code is None else 0):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
        return self._exit_code

    def _run_timers(self) -> float:
        """Call what is due; return the seconds until the next, -1 if there is none."""
        if not self._timers:
            return -1
        self._timers = [timer for timer in self._timers if timer.callback is not None]
        now = time.monotonic()
        due = [timer for timer in self._timers if timer.due <= now]
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        if due:
            return 0
        return min([timer.due for timer in self._timers]) - now if self._timers else -1
