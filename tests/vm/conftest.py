"""Real guests: one template for the whole run, cached by content; one daemon for the tests that do not break it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from insula.templates.build import BuiltTemplate
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, install


@pytest.fixture(scope="session")
def built_template() -> BuiltTemplate:
    return asyncio.run(build_template())


@pytest.fixture
async def daemon(built_template: BuiltTemplate) -> AsyncIterator[DaemonProcess]:
    """A daemon with the template installed and nothing else."""
    async with DaemonProcess() as running:
        await install(running.client, built_template)
        yield running


@pytest.fixture
async def qube(daemon: DaemonProcess) -> str:
    """An app qube, started."""
    await daemon.client.create_qube("AppVM", "test-app", "red", template=TEMPLATE)
    await daemon.client.start("test-app")
    return "test-app"
