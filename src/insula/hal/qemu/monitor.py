"""QEMU's monitor (QMP) with a limit on every wait, and its messages as types.

The protocol itself is the ``qemu.qmp`` package's. Added here: a time limit for each command, our errors instead of
the package's, events parsed into frozen values and handed to one callback (the package's own queues grow without
bound, so they are switched off), and a signal when the connection ends. What the VMM says is untrusted as far as form
goes: a reply of another shape is a DriverError.

Sources: QEMU 7.2 ``docs/interop/qemu-qmp-ref`` (commands, events, RunState), ``docs/interop/qmp-spec``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from qemu.qmp import EventListener, Message, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecInterruptedError, ExecuteError

from insula.hal.errors import DriverError, MachineGone

COMMAND_LIMIT_S = 30.0
"""QEMU answers from its main loop, at once unless it waits for a disk, or for a host that has no time for it."""
MAX_REPLY = 1 << 20
"""Bytes of one message; query-chardev, the longest we ask for, is about 3 KiB."""

_SCREEN = "screen"
_DEVICE = re.compile(r"/machine/peripheral/([a-z0-9]{1,32})/virtio-backend")
"""``qdev`` of a disk in ``query-block``."""

_log = logging.getLogger(__name__)


class RunState(StrEnum):
    """``RunState`` of the reference, as far as the driver tells them apart."""

    RUNNING = "running"
    SHUTDOWN = "shutdown"
    """The guest ended; the VMM waits."""
    GUEST_PANICKED = "guest-panicked"
    INTERNAL_ERROR = "internal-error"
    """The accelerator gave up (KVM)."""
    IO_ERROR = "io-error"
    """A disk failed or is full; the guest is stopped and may be told to go on."""
    RESTORING = "inmigrate"
    """A fork whose memory and devices are being read."""
    STOPPED = "stopped"
    """Any other: prelaunch, paused…"""

    @classmethod
    def parse(cls, text: str) -> RunState:
        return cls(text) if text in cls._value2member_map_ else cls.STOPPED


@dataclass(frozen=True)
class GuestEnded:
    """``SHUTDOWN``: the machine ended or is about to."""

    by_guest: bool
    reason: str
    """``ShutdownCause``, e.g. ``guest-shutdown``, ``guest-reset``, ``host-signal``."""


@dataclass(frozen=True)
class GuestPanicked:
    """``GUEST_PANICKED``: the guest's kernel reported its own death."""


@dataclass(frozen=True)
class GuestStopped:
    """``STOP``: virtual CPUs stand still, for whatever reason."""


@dataclass(frozen=True)
class DiskFailed:
    """``BLOCK_IO_ERROR``."""

    device: str
    is_full: bool
    stops_guest: bool


@dataclass(frozen=True)
class HandedDescriptor:
    """A descriptor that a VMM was given."""

    fdset: int
    """``/dev/fdset/N`` opens it."""
    number: int
    """In the VMM."""


@dataclass(frozen=True)
class DiskNode:
    """What is behind a disk of the guest."""

    name: str
    size: int
    """Bytes."""


MonitorEvent = GuestEnded | GuestPanicked | GuestStopped | DiskFailed


def parse_event(message: Mapping[str, object]) -> MonitorEvent | None:
    """The event as a value; None if it is of no interest, unknown or of an unexpected form."""
    name, data = message.get("event"), message.get("data", {})
    if not isinstance(data, Mapping):
        return None
    if name == "SHUTDOWN":
        return GuestEnded(data.get("guest") is True, _word(data.get("reason")))
    if name == "GUEST_PANICKED":
        return GuestPanicked()
    if name == "STOP":
        return GuestStopped()
    if name == "BLOCK_IO_ERROR":
        return DiskFailed(_word(data.get("node-name")), data.get("nospace") is True, data.get("action") == "stop")
    return None


def _word(value: object) -> str:
    """A short identifier from the VMM, safe in a log line."""
    return value[:64] if isinstance(value, str) and value.isascii() and value.isprintable() else "?"


class Monitor:
    """One QMP connection.

    :param on_event: called from the loop for each known event, in order.
    """

    def __init__(self, name: str, on_event: Callable[[MonitorEvent], None]) -> None:
        self._client = QMPClient(name, readbuflen=MAX_REPLY)
        self._client.events.event_filter = lambda _: False
        self._client.register_listener(_Listener(on_event))

    async def connect(self, client: socket.socket, limit_s: float) -> None:
        """Greet over a connected socket, taken over in any case.

        :raise DriverError: no QMP at the other end, or not in time.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self._client.connect(client)
        except TimeoutError as error:
            raise DriverError(f"QEMU's monitor did not answer within {limit_s:.0f} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise DriverError("QEMU's monitor did not greet", str(error)) from error
        finally:
            if self._client.runstate is not Runstate.RUNNING:
                client.close()

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, limit_s: float = COMMAND_LIMIT_S
    ) -> object:
        """Run a command and return what it returned.

        :raise DriverError: refused (``detail`` has QEMU's words) or not answered in time.
        :raise MachineGone: the connection is closed or ended meanwhile.
        """
        if self._client.runstate is not Runstate.RUNNING:
            raise MachineGone(f"no monitor connection for {command}")
        try:
            async with asyncio.timeout(limit_s):
                return await self._client.execute(command, arguments)
        except TimeoutError as error:
            raise DriverError(f"QEMU did not answer {command} within {limit_s:.0f} s") from error
        except ExecuteError as error:
            raise DriverError(f"QEMU refused {command}", str(error)) from error
        except ExecInterruptedError as error:
            raise MachineGone(f"the VMM ended during {command}") from error
        except QMPError as error:
            raise DriverError(f"QEMU's answer to {command} makes no sense", str(error)) from error

    async def run_state(self) -> RunState:
        return RunState.parse(_text(await self._query("query-status"), "status"))

    async def balloon_bytes(self) -> int:
        """What the guest may use now."""
        actual = (await self._query("query-balloon")).get("actual")
        if not isinstance(actual, int):
            raise DriverError("QEMU's answer to query-balloon makes no sense")
        return actual

    async def give(self, name: str, fd: int) -> None:
        """Hand over a copy of a descriptor, known to later commands as ``name`` (``getfd``)."""
        if self._client.runstate is Runstate.RUNNING:
            try:
                self._client.send_fd_scm(fd)
            except OSError as error:
                raise DriverError("QEMU's monitor takes no descriptor", str(error)) from error
        await self.execute("getfd", {"fdname": name})

    async def show_screen(self, connection: socket.socket) -> None:
        """Have the machine's screen shown to whoever holds the other end; whoever had it before has it no more."""
        await self.give(_SCREEN, connection.fileno())
        await self.execute("add_client", {"protocol": "vnc", "fdname": _SCREEN, "skipauth": True})

    async def add_descriptor(self, fd: int) -> HandedDescriptor:
        """Hand over a copy of a descriptor, for files to be opened from (``add-fd``)."""
        if self._client.runstate is Runstate.RUNNING:
            try:
                self._client.send_fd_scm(fd)
            except OSError as error:
                raise DriverError("QEMU's monitor takes no descriptor", str(error)) from error
        reply = await self._query("add-fd")
        fdset, number = reply.get("fdset-id"), reply.get("fd")
        if not isinstance(fdset, int) or not isinstance(number, int):
            raise DriverError("QEMU's answer to add-fd makes no sense")
        return HandedDescriptor(fdset, number)

    async def migration_status(self) -> tuple[str, str]:
        """``MigrationStatus`` of the reference (``completed``, ``failed``…), and QEMU's words about a failure."""
        reply = await self._query("query-migrate")
        words = reply.get("error-desc", "")
        return _text(reply, "status"), words if isinstance(words, str) else ""

    async def disks(self) -> dict[str, DiskNode]:
        """What each disk of the guest shows, by the id of its device."""
        reply = await self.execute("query-block")
        disks = {}
        for entry in reply if isinstance(reply, list) else ():
            inserted = entry.get("inserted") if isinstance(entry, Mapping) else None
            image = inserted.get("image") if isinstance(inserted, Mapping) else None
            if isinstance(inserted, Mapping) and isinstance(image, Mapping):
                size = image.get("virtual-size")
                device = _DEVICE.fullmatch(_text(entry, "qdev"))
                if isinstance(size, int) and device is not None:
                    disks[device[1]] = DiskNode(_text(inserted, "node-name"), size)
        return disks

    async def plugged_devices(self) -> frozenset[str]:
        """Ids of the devices that were given one, at start or later."""
        reply = await self.execute("qom-list", {"path": "/machine/peripheral"})
        entries = reply if isinstance(reply, list) else ()
        return frozenset(_text(entry, "name") for entry in entries if isinstance(entry, Mapping))

    async def is_chardev_connected(self, chardev: str) -> bool:
        """Whether somebody is connected to a socket chardev. :raise DriverError: there is no such chardev."""
        reply = await self.execute("query-chardev")
        for entry in reply if isinstance(reply, list) else ():
            if isinstance(entry, Mapping) and entry.get("label") == chardev:
                # char-socket.c writes the state in front of the address; there is no field of its own for it.
                return not _text(entry, "filename").startswith("disconnected:")
        raise DriverError(f"QEMU has no chardev {chardev!r}")

    async def _query(self, command: str) -> Mapping[str, object]:
        reply = await self.execute(command)
        if not isinstance(reply, Mapping):
            raise DriverError(f"QEMU's answer to {command} makes no sense")
        return reply

    async def wait_closed(self) -> None:
        """Return once the other side has closed and every event before that was delivered."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Let go of the connection; idempotent."""
        if self._client.runstate is Runstate.IDLE:
            return
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError) as error:
            # Why the other side hung up; that it did is reported by the process that ended.
            _log.debug("monitor closed: %s", error)


class _Listener(EventListener):
    """Hands events on at once and keeps none."""

    def __init__(self, on_event: Callable[[MonitorEvent], None]) -> None:
        super().__init__()
        self._on_event = on_event

    async def put(self, event: Message) -> None:
        if (parsed := parse_event(event)) is not None:
            self._on_event(parsed)


def _text(reply: Mapping[str, object], key: str) -> str:
    value = reply.get(key)
    if not isinstance(value, str):
        raise DriverError(f"QEMU's answer lacks {key!r}")
    return value
