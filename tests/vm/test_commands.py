"""Commands in a real guest: streams, exit codes, users, signals."""

from __future__ import annotations

import asyncio
import hashlib
import os

from insula.hal.capabilities import Capability
from insula.rpc.client import RpcError
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import RUN_TIMEOUT_S, run, sh
from insula_proto.vmexec import encode

BULK = 8 * 1024 * 1024
"""Bytes of a bulk transfer each way."""
SHARING = "grep -ls resource2 /proc/[0-9]*/maps"
"""Names the process that has memory of a device mapped: the agent."""
RANDOMIZED = "cat /proc/sys/kernel/randomize_va_space"


async def test_command_gets_its_user_home_and_shell(daemon: DaemonProcess, shared_qube: str) -> None:
    assert await sh(daemon, shared_qube, "id -un; pwd; echo $HOME $LOGNAME") == "user\n/home/user\n/home/user user"
    assert await sh(daemon, shared_qube, "id -u; pwd", user="root") == "0\n/root"
    # All that it could have of root's is gone, and nothing of that is gone in the agent, which has started it.
    rights = "sed -n 's/^\\(Uid\\|Gid\\|CapPrm\\):.//p' /proc/{}/status"
    ours, agents = [await sh(daemon, shared_qube, rights.format(of)) for of in ("self", "$QREXEC_AGENT_PID")]
    assert ours.split() == [*["1000"] * 8, "0" * 16]
    assert agents.split()[:8] == ["0"] * 8
    assert int(agents.split()[8], 16) > 0


async def test_exit_codes_signals_and_stderr_arrive_apart(daemon: DaemonProcess, shared_qube: str) -> None:
    result = await run(daemon, shared_qube, "echo out; echo err >&2; exit 7")
    assert (result.code, result.out, result.err) == (7, b"out\n", b"err\n")
    assert (await run(daemon, shared_qube, "kill -TERM $$")).code == 128 + 15
    assert (await run(daemon, shared_qube, "no-such-command-here")).code == 127


async def test_service_that_does_not_exist_is_127(daemon: DaemonProcess, shared_qube: str) -> None:
    assert (await run(daemon, shared_qube, "QUBESRPC test.NoSuchService+ dom0")).code == 127


async def test_half_close_ends_input_and_output_still_comes(daemon: DaemonProcess, shared_qube: str) -> None:
    result = await run(daemon, shared_qube, "cat | wc -c; echo after", stdin=b"x" * 1000)
    assert result.text.split() == ["1000", "after"]


async def test_bulk_data_arrives_whole_both_ways(daemon: DaemonProcess, shared_qube: str) -> None:
    data = os.urandom(BULK)
    into = await run(daemon, shared_qube, "sha256sum", stdin=data)
    assert into.out.split()[0].decode() == hashlib.sha256(data).hexdigest()
    back = await run(daemon, shared_qube, "cat", stdin=data)
    assert hashlib.sha256(back.out).digest() == hashlib.sha256(data).digest()


async def test_large_streams_go_through_shared_memory_and_arrive_whole(daemon: DaemonProcess, qube: str) -> None:
    """Asked for when a stream has proved large, while the machine runs; also after the agent was replaced."""
    data = os.urandom(3 * BULK)
    for _ in range(2):
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while await attempt(daemon, qube, "echo there") != "there":
                await asyncio.sleep(0.1)
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while not await sh(daemon, qube, f"{SHARING} || true", user="root"):
                assert (await run(daemon, qube, "cat", stdin=data)).out == data
        assert (await run(daemon, qube, "cat", stdin=data)).out == data
        agent = await sh(daemon, qube, SHARING, user="root")
        later = f"setsid sh -c 'sleep 0.5; kill -9 {agent.split('/')[2]}' </dev/null >/dev/null 2>&1 &"
        await sh(daemon, qube, later, user="root")
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while (await attempt(daemon, qube, SHARING)) == agent:
                await asyncio.sleep(0.1)


async def attempt(daemon: DaemonProcess, qube: str, command: str) -> str:
    """What a command says, as far as it can be said while the agent comes and goes."""
    try:
        return (await run(daemon, qube, command, user="root")).text
    except RpcError:
        return ""


async def test_option_like_and_shell_like_arguments_arrive_unchanged(daemon: DaemonProcess, shared_qube: str) -> None:
    """MC-17: through qubes.VMExec nothing is expanded."""
    arguments = ["printf", "%s\\n", "-x", "--help", "$HOME `id`", "a;b|c", "ü", "", "*"]
    encoded = encode([argument.encode() for argument in arguments]).decode()
    command = f"QUBESRPC qubes.VMExec+{encoded} dom0"
    result = await run(daemon, shared_qube, command)
    assert result.out.decode().split("\n")[:-1] == arguments[2:]


async def test_twenty_commands_at_once_all_answer(daemon: DaemonProcess, shared_qube: str) -> None:
    results = await asyncio.gather(*(run(daemon, shared_qube, f"echo {n}") for n in range(20)))
    assert [r.text for r in results] == [str(n) for n in range(20)]


async def test_cancelled_command_does_not_go_on_in_the_guest(daemon: DaemonProcess, shared_qube: str) -> None:
    """MC-22: the caller is gone, the process gets its hang-up."""
    sleeping = asyncio.create_task(run(daemon, shared_qube, "echo $$ > /tmp/pid; exec sleep 1000"))
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while (await run(daemon, shared_qube, "test -s /tmp/pid")).code != 0:
            pass
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while (await run(daemon, shared_qube, "kill -0 $(cat /tmp/pid)")).code == 0:
            pass


async def test_addresses_are_random_with_hardware_and_where_a_qube_asks_for_it(
    daemon: DaemonProcess, qube: str, halted_qube: str
) -> None:
    """Decision 016: equal ones have code translated once, and are for emulation only."""
    capabilities = (await daemon.client.status())["capabilities"]
    assert isinstance(capabilities, list)
    emulated = Capability.HARDWARE_VIRTUALIZATION not in capabilities
    assert await sh(daemon, qube, RANDOMIZED) == ("0" if emulated else "2")
    await daemon.client.kill(qube)
    await daemon.client.set_property("kernelopts", "sysctl.kernel.randomize_va_space=2", halted_qube)
    await daemon.client.set_property("start_mode", "cold", halted_qube)
    await daemon.client.start(halted_qube)
    assert await sh(daemon, halted_qube, RANDOMIZED) == "2"
    places = [await sh(daemon, halted_qube, "grep -m 1 libc.so /proc/self/maps") for _ in range(2)]
    assert places[0] != places[1]
