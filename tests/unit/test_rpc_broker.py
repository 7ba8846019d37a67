"""Calls between qubes: real session processes and the real broker; the guests are the test's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.testing.agent import AGENT_FOLDER, FakeQube
from insula.testing.call_world import CallWorld, call_world, echo

PATIENCE = 30.0
CLIENT_VM = "import sys; from insula_agent.client_vm import main; sys.exit(main())"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CallWorld]:
    async with asyncio.timeout(PATIENCE), call_world(tmp_path) as made:
        yield made


async def test_allowed_call_goes_to_the_target_and_its_answer_comes_back(world: CallWorld) -> None:
    world.rules("test.Echo * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    result = await work.call("test.Echo+arg", "vault", stdin=b"hello")
    assert result is not None
    assert (result.code, result.domain) == (7, 2)
    assert result.out == b"hello|user:QUBESRPC test.Echo+arg work"


async def test_call_that_no_rule_allows_is_refused_and_nothing_reaches_the_target(world: CallWorld) -> None:
    world.rules("test.Echo * work vault deny\n")
    work, vault = await world.boot("work"), await world.boot("vault")
    assert await work.call("test.Echo", "vault") is None
    assert await work.call("test.Other", "vault") is None
    assert vault.executed == []


async def test_caller_that_claims_to_be_another_qube_is_refused_under_its_own_name(world: CallWorld) -> None:
    """MC-18: only a qube that relays for a remote one may speak for it."""
    world.rules("test.Echo * vault target allow\ntest.Echo * work target deny\n")
    work, target = await world.boot("work"), await world.boot("target")
    await world.boot("vault")
    assert await work.call("test.Echo", "target", source="vault") is None
    assert await work.call("test.Echo", "target") is None
    assert target.executed == []


async def test_real_agents_a_program_of_one_qube_runs_a_service_of_another(world: CallWorld) -> None:
    """qrexec-client-vm → agent → session → broker → session → agent → service, and back."""
    world.rules("test.Cat +a.b work vault allow")
    work, vault = await world.boot_agent("work"), await world.boot_agent("vault")
    vault.add_service("test.Cat", '#!/bin/sh\necho "from $QREXEC_REMOTE_DOMAIN: $1" >&2\ncat\nexit 3\n')
    program = await client_vm(work, "vault", "test.Cat+a.b")
    out, err = await program.communicate(b"hello")
    assert (program.returncode, out, err) == (3, b"hello", b"from work: a.b\n")
    refused = await client_vm(work, "vault", "test.Cat+other")
    await refused.communicate()
    assert refused.returncode == 126


async def client_vm(qube: FakeQube, *arguments: str) -> asyncio.subprocess.Process:
    """The program that qubes call services with."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", "-c", CLIENT_VM, "-a", str(qube.agent_socket), *arguments),
        cwd=AGENT_FOLDER.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
