"""What the sound server mixes, from its FIFO to the host, in a call to ``insula.PlaySound`` while there is something.

No more is read than the host grants, so the sound server waits for the host, and programs wait for it: their clock is
that of the host's loudspeakers. Where the host does not play (there is no sound server, the policy forbids it) samples
are thrown away at the pace at which they would be heard: a film goes on without a sound.
"""

from __future__ import annotations

import os
import time

from insula_agent.loop import HANGUP, READ
from insula_agent.sound.host_call import HostCall
from insula_proto import sound
from insula_proto.sound import BLOCK, Grants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.loop import Loop

IDLE_S = 3.0
"""Without a sample; the sound server gives some, of silence, for as long as a program has a stream open."""
DEAF_S = 10.0
"""Until the host is asked again after it refused."""
DEAF_BLOCKS = 5
"""Thrown away at a time."""
GRANTS_SIZE = 64


class Player:
    def __init__(self, loop: Loop, fifo: int, on_end: Callable[[], None], log: Callable[[str], None]) -> None:
        """``fifo`` does not block, and stays the caller's. ``on_end``: the sound server has gone."""
        self._loop = loop
        self._fifo = fifo
        self._on_end = on_end
        self._log = log
        self._call: HostCall | None = None
        self._grants = Grants()
        self._is_ending = False
        """The call was told that nothing more comes."""
        self._deaf_until = 0.0
        self._is_refused = False
        self._has_ended = False
        self._watch()

    def close(self) -> None:
        """The host hears no more."""
        self._has_ended = True
        self._loop.forget(self._fifo)
        if self._call is not None:
            self._call.wait()
            self._call = None

    def _watch(self) -> None:
        if not self._has_ended:
            self._loop.watch(self._fifo, READ, self._readable)

    def _readable(self, events: int) -> None:
        if events & HANGUP and not events & READ:
            self._end()
        elif self._deaf_until:
            self._throw_away()
        elif self._call is None:
            self._begin()
        else:
            self._pass_on(self._call)

    def _read(self, size: int) -> bytes:
        try:
            data = os.read(self._fifo, size)
        except BlockingIOError:
            return b""
        if not data:
            self._end()
        elif self._call is not None:
            self._call.used()
        return data

    def _end(self) -> None:
        self.close()
        self._on_end()

    # --- while the host plays ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._loop.forget(self._fifo)
        try:
            self._call = HostCall(self._loop, sound.PLAY_SERVICE, self._granted, IDLE_S, self._idle)
        except OSError as error:
            self._refused(str(error))
            return
        self._grants = Grants()
        self._is_ending = False

    def _granted(self) -> None:
        call = self._call
        if call is None:
            return
        grants = os.read(call.stdout, GRANTS_SIZE)
        if not grants:
            self._ended(call)
        elif not self._is_ending:
            if not self._grants.room:
                # What is there meanwhile has yet to be read.
                call.used()
            self._grants.receive(grants)
            self._watch()

    def _pass_on(self, call: HostCall) -> None:
        data = self._read(self._grants.room)
        if not data:
            return
        # (The pipe holds all that can be granted.)
        try:
            os.write(call.stdin, data)
        except BrokenPipeError:
            # What is read next of the call is its end.
            self._loop.forget(self._fifo)
            return
        self._grants.sent(len(data))
        if not self._grants.room:
            self._loop.forget(self._fifo)

    def _idle(self) -> bool:
        assert self._call is not None
        if not self._grants.room:
            # Without a grant it is the host that keeps us waiting.
            return False
        self._is_ending = True
        self._loop.forget(self._fifo)
        self._call.close_stdin()
        return True

    def _ended(self, call: HostCall) -> None:
        self._call = None
        code = call.wait()
        if code or not self._is_ending:
            self._refused(f"exit code {code}")
        else:
            self._is_refused = False
            self._watch()

    # --- while it does not ---------------------------------------------------------------------------------------

    def _refused(self, why: str) -> None:
        if not self._is_refused:
            self._log(f"the host does not play: {why}")
        self._is_refused = True
        self._deaf_until = time.monotonic() + DEAF_S
        self._watch()

    def _throw_away(self) -> None:
        self._loop.forget(self._fifo)
        began = time.monotonic()
        self._read(DEAF_BLOCKS * BLOCK)
        if self._has_ended:
            return
        if began >= self._deaf_until:
            self._deaf_until = 0.0
        self._loop.after(DEAF_BLOCKS * sound.BLOCK_MS / 1000, self._watch)
