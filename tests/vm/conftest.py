"""Real guests: one template and one daemon for the whole run, qubes of a test's own.

The daemon is a process and its client keeps nothing between calls, so it may outlive the event loops of single tests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from insula.model.errors import QubesVMNotStartedError
from insula.templates.build import BuiltTemplate
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install

_numbers = itertools.count(1)


@contextmanager
def installation(
    add: Callable[[DaemonProcess], Awaitable[None]] | None = None,
    change: Callable[[BuiltTemplate], BuiltTemplate] | None = None,
) -> Iterator[DaemonProcess]:
    """A daemon with the template installed, or what ``change`` makes of it, and with what ``add`` does to it.

    Ended without an error, it is looked at whether it left anything.
    """
    running = DaemonProcess()

    async def enter() -> None:
        built = await build_template()
        await running.__aenter__()
        await install(running.client, built if change is None else change(built))
        if add is not None:
            await add(running)

    asyncio.run(enter())
    failed = True
    try:
        yield running
        failed = False
    finally:
        error = AssertionError("the run was broken off") if failed else None
        asyncio.run(running.__aexit__(type(error) if error else None, error, None))


@pytest.fixture(scope="session")
def daemon() -> Iterator[DaemonProcess]:
    """The one of most tests."""
    with installation() as running:
        yield running


@pytest.fixture
async def halted_qube(daemon: DaemonProcess) -> AsyncIterator[str]:
    """A new app qube, not started."""
    name = f"test-{next(_numbers)}"
    await create_app_qube(daemon.client, name)
    yield name
    await discard(daemon, name)


@pytest.fixture
async def qube(daemon: DaemonProcess, halted_qube: str) -> str:
    """A new app qube, started."""
    await daemon.client.start(halted_qube)
    return halted_qube


@pytest.fixture(scope="module")
def shared_qube(daemon: DaemonProcess) -> Iterator[str]:
    """A started app qube for tests that leave nothing in it that could disturb the others."""
    name = f"test-shared-{next(_numbers)}"

    async def make() -> None:
        await create_app_qube(daemon.client, name)
        await daemon.client.start(name)

    asyncio.run(make())
    yield name
    asyncio.run(discard(daemon, name))


async def discard(daemon: DaemonProcess, name: str) -> None:
    """Kill and remove a qube of a test."""
    with suppress(QubesVMNotStartedError):
        await daemon.client.kill(name)
    await daemon.client.remove(name)
