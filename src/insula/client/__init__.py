"""Qubes from Python: machines for code that is not to be trusted, without root.

::

    import asyncio, insula

    async def main() -> None:
        async with insula.disposable("debian-12") as qube:
            result = await qube.run(["python3", "-c", "print(6 * 7)"], timeout=10)
            print(result.exit_code, result.text)

    asyncio.run(main())

:func:`disposable` is a machine of its own that is gone afterwards, :func:`qube` one that is there already;
:mod:`insula.client.sync` has both for programs without asyncio, as ``insula.sync``. Errors:
:mod:`insula.client.errors`. How to use it, and who guarantees what: ``docs/howto/run-untrusted-code.md``.

Nothing here needs a configuration: the daemon is found where the command ``insula`` finds it, and started if it does
not run.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from insula.admin.client import DOM0, AdminClient
from insula.client.errors import (
    CallFailed,
    ClientError,
    CommandFailed,
    CommandTimedOut,
    CopyFailed,
    CopyTooLarge,
    OutputTooLong,
    QubeEnded,
    UnsafeStream,
)
from insula.client.lease import lease
from insula.client.machine import Qube
from insula.client.result import Result
from insula.daemon.autostart import ensure_daemon
from insula.daemon.paths import Paths

__all__ = [
    "CallFailed",
    "ClientError",
    "CommandFailed",
    "CommandTimedOut",
    "CopyFailed",
    "CopyTooLarge",
    "OutputTooLong",
    "Qube",
    "QubeEnded",
    "Result",
    "UnsafeStream",
    "disposable",
    "qube",
]


def qube(name: str) -> Qube:
    """A qube that exists. Nothing is asked of the daemon yet: whether it is there shows with the first call."""
    return Qube(name, connect)


@contextlib.asynccontextmanager
async def disposable(
    template: str | None = None,
    *,
    memory_mib: int | None = None,
    vcpus: int | None = None,
    network: str | None = None,
    timeout: float | None = None,
    cpu_time: float | None = None,
) -> AsyncIterator[Qube]:
    """A fresh machine for the time of the block, started when the block begins, gone when it ends, however it ends.

    ``template``: what it starts from, a template ("debian-12") or a disposable template; None is the default one.
    ``memory_mib``, ``vcpus``: its size, None as the template says; the hypervisor keeps it to that. Sizes other than
    the usual ones start slower the first time. ``network``: name of the net qube, None is no network at all.
    ``timeout``: seconds of life from its start; ``cpu_time``: seconds of CPU time of this machine it may use, checked
    twice a second. The daemon ends it at these limits; calls then raise :class:`QubeEnded` with the reason.

    It is removed when the block ends, by an exception or cancellation too; if this process dies, by the daemon, which
    sees the connection end; if the daemon dies, by the next one.

    :raise InsulaError: the daemon refused: no such template, not enough memory, or 128 are held already.
    :raise DaemonUnavailable: it cannot be reached or started.
    """
    options: dict[str, object] = {"netvm": network}
    given = {"memory_mib": memory_mib, "vcpus": vcpus, "lifetime_s": timeout, "cpu_time_s": cpu_time}
    options.update({name: value for name, value in given.items() if value is not None})
    async with lease(await connect(), template or DOM0, options) as held:
        yield Qube(held.name, connect, held)


async def connect() -> AdminClient:
    """The daemon's client; starts the daemon if it does not run. :raise DaemonUnavailable:"""
    paths = Paths.from_environment()
    await ensure_daemon(paths)
    return AdminClient(paths.admin_socket)
