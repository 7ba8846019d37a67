"""The data ports of a qube and the calls on them, whoever made these: clients, other qubes, the qube itself."""

from __future__ import annotations

from typing import Protocol

from insula_proto import limits


class CallOwner(Protocol):
    """Who a call is for."""

    def relay_closed(self) -> None:
        """Its data channel is over. Said once, before :meth:`close`."""

    def close(self) -> None:
        """Its port is free again, or lost with the agent. May be said twice."""


class CallRelay(Protocol):
    """What moves a call's bytes."""

    def caller_gone(self) -> None: ...


class CallCounter(Protocol):
    def calls_changed(self) -> None: ...


class _Call:
    """A port in use. Free again when the agent said so *and* the data stream is closed."""

    __slots__ = ("domain", "is_relayed", "is_terminated", "owner", "relay")

    def __init__(self, domain: int, owner: CallOwner, relay: CallRelay) -> None:
        self.domain = domain
        self.owner = owner
        self.relay = relay
        self.is_relayed = True
        self.is_terminated = False


class CallTable:
    """Ports 513…768 and the calls on them. ``on_change`` is called whenever a counter changed."""

    def __init__(self, on_change: CallCounter) -> None:
        self._calls: dict[int, _Call] = {}
        self._on_change = on_change
        self.started = 0
        self.refused = 0

    @property
    def running(self) -> int:
        return len(self._calls)

    def free_port(self) -> int | None:
        """The lowest free port; None if the qube's quota is used up (MC-15)."""
        ports = range(limits.FIRST_DATA_PORT, limits.FIRST_DATA_PORT + limits.MAX_CALLS)
        return next((port for port in ports if port not in self._calls), None)

    def add(self, port: int, domain: int, owner: CallOwner, relay: CallRelay) -> None:
        """``domain``: number of the qube at the other end, which the agent repeats when the call is over."""
        self._calls[port] = _Call(domain, owner, relay)
        self.started += 1
        self._on_change.calls_changed()

    def count_refused(self) -> None:
        self.refused += 1
        self._on_change.calls_changed()

    def terminated(self, domain: int, port: int) -> None:
        """The agent said that a call is over; only for the domain it was made for (qrexec §3)."""
        call = self._calls.get(port)
        if call is not None and domain == call.domain:
            call.is_terminated = True
            self._free(port, call)

    def relay_closed(self, port: int) -> None:
        call = self._calls.get(port)
        if call is not None:
            call.is_relayed = False
            call.owner.relay_closed()
            self._free(port, call)

    def owner_gone(self, owner: CallOwner) -> None:
        """An owner does not want its call any more.

        The relay would see the end of the data channel only behind everything the guest has not read.
        """
        for call in tuple(self._calls.values()):
            if call.owner is owner:
                call.relay.caller_gone()

    def clear(self) -> None:
        """The agent is lost, and every call with it; the relays were told by the channel."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.owner.close()
        if calls:
            self._on_change.calls_changed()

    def _free(self, port: int, call: _Call) -> None:
        if call.is_terminated and not call.is_relayed:
            del self._calls[port]
            call.owner.close()
            self._on_change.calls_changed()
