"""A call of a real guest under a rule that asks, answered by a hand on a real screen (MC-24)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from insula.policy.store import NEW_TOKEN, PolicyStore
from insula.testing.daemon import DaemonProcess
from insula.testing.desktop import Desktop, desktop
from insula.testing.guest import create_app_qube, run, sh
from insula.testing.prompt_program import TITLE, PromptProgram, running_prompt

from .conftest import discard

pytestmark = [pytest.mark.vm, pytest.mark.desktop]

POLICY = "20-test-prompt"
SERVICE = "test.Greet"
ADD_SERVICE = f"""\
mkdir -p /usr/local/etc/qubes-rpc
printf '#!/bin/sh\\necho "hello $QREXEC_REMOTE_DOMAIN, this is $(hostname)"\\n' > /usr/local/etc/qubes-rpc/{SERVICE}
chmod 755 /usr/local/etc/qubes-rpc/{SERVICE}
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1024, 768) as shown:
        yield shown


@pytest.fixture
def prompt(daemon: DaemonProcess, screen: Desktop) -> Iterator[PromptProgram]:
    with running_prompt(screen, daemon.paths.runtime.parent) as program:
        yield program


@dataclass(frozen=True)
class Pair:
    caller: str
    target: str


@pytest.fixture
async def pair(daemon: DaemonProcess) -> AsyncIterator[Pair]:
    """Two qubes, the first of which may ask for a service of the second."""
    pair = Pair("test-asks", "test-greets")
    for name in (pair.caller, pair.target):
        await create_app_qube(daemon.client, name)
    await daemon.client.start(pair.caller)
    await daemon.client.start(pair.target)
    await sh(daemon, pair.target, ADD_SERVICE, user="root")
    store = PolicyStore(daemon.paths.policy)
    rule = f"{SERVICE} * {pair.caller} @anyvm ask default_target={pair.target}\n"
    store.replace(POLICY, rule.encode(), NEW_TOKEN)
    yield pair
    store.remove(POLICY, "any")
    for name in (pair.caller, pair.target):
        await discard(daemon, name)


async def test_call_of_a_guest_waits_for_the_answer_and_goes_where_the_user_said(
    daemon: DaemonProcess, pair: Pair, prompt: PromptProgram
) -> None:
    call = asyncio.create_task(run(daemon, pair.caller, f"qrexec-client-vm @default {SERVICE}"))
    window = await asyncio.to_thread(prompt.armed)
    assert not call.done()
    await asyncio.to_thread(prompt.screen.click, *prompt.allow_button(window))
    result = await call
    assert (result.code, result.text) == (0, f"hello {pair.caller}, this is {pair.target}")

    call = asyncio.create_task(run(daemon, pair.caller, f"qrexec-client-vm @default {SERVICE}"))
    window = await asyncio.to_thread(prompt.settled)
    await asyncio.to_thread(prompt.screen.click, *prompt.deny_button(window))
    assert (await call).code == 126


async def test_mc24_prompt_disappears_with_the_call_and_with_the_qube(
    daemon: DaemonProcess, pair: Pair, prompt: PromptProgram
) -> None:
    screen = prompt.screen

    def is_gone() -> bool:
        return not screen.windows(TITLE)

    asking = f"qrexec-client-vm @default {SERVICE} < /dev/null & echo $! > /tmp/asking; wait $!"
    call = asyncio.create_task(run(daemon, pair.caller, asking))
    await asyncio.to_thread(prompt.settled)
    await sh(daemon, pair.caller, "kill $(cat /tmp/asking)")
    assert (await call).code == 128 + signal.SIGTERM
    await asyncio.to_thread(screen.wait, is_gone, "the prompt of a program that gave up is still there")

    call = asyncio.create_task(run(daemon, pair.caller, f"qrexec-client-vm @default {SERVICE}"))
    await asyncio.to_thread(prompt.settled)
    await daemon.client.kill(pair.caller)
    await asyncio.to_thread(screen.wait, is_gone, "the prompt of a qube that is off is still there")
    assert (await call).code != 0
