"""A call to the host for as long as something is heard: the part that playing and recording have in common.

Who makes it says of each sample that it was used (:meth:`HostCall.used`), and is told when none was for a while.
"""

from __future__ import annotations

import time

from insula_agent.client_call import ClientCall
from insula_agent.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.loop import Loop

HOST = "dom0"


class HostCall(ClientCall):
    """From its start. :raise OSError: there is no client."""

    def __init__(
        self, loop: Loop, service: str, on_output: Callable[[], None], idle_s: float, on_idle: Callable[[], bool]
    ) -> None:
        """``on_output``: the host says something, or its end. ``on_idle``: nothing was used for ``idle_s`` seconds;
        it returns False if there is another reason for that, and is asked again."""
        super().__init__(HOST, service)
        self._loop = loop
        self._idle_s = idle_s
        self._on_idle = on_idle
        self._last = time.monotonic()
        self._timer = loop.after(idle_s, self._look)
        loop.watch(self.stdout, READ, lambda events: on_output())

    def used(self) -> None:
        """A sample has come, or was taken; or it is not for want of one that nothing goes on."""
        self._last = time.monotonic()

    def _look(self) -> None:
        idle = time.monotonic() - self._last
        if idle < self._idle_s or not self._on_idle():
            self._timer = self._loop.after(max(self._idle_s - idle, self._idle_s / 4), self._look)

    def wait(self) -> int:
        self._timer.cancel()
        self._loop.forget(self.stdout)
        return super().wait()
