"""Real guests: one template and one daemon for the whole run, qubes of a test's own.

The daemon is a process and its client keeps nothing between calls, so it may outlive the event loops of single tests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from insula.model.errors import QubesVMNotStartedError
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def daemon() -> Iterator[DaemonProcess]:
    """A daemon with the template installed."""
    running = DaemonProcess()
    asyncio.run(_enter(running))
    failed = True
    try:
        yield running
        failed = False
    finally:
        error = AssertionError("the run was broken off") if failed else None
        asyncio.run(running.__aexit__(type(error) if error else None, error, None))


async def _enter(running: DaemonProcess) -> None:
    built = await build_template()
    await running.__aenter__()
    await install(running.client, built)


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
