"""Calls between real guests: allowed, denied, asked about; disposables, the host, qubes that are off or go away."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from insula.policy.store import PolicyStore
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import RUN_TIMEOUT_S, Result, create_app_qube, run, sh
from insula.testing.scripted_policy_agent import ScriptedAgent

from .conftest import discard

CALLER, TARGET, MANAGER, BASE = "test-caller", "test-target", "test-manager", "test-dvm"
RULES = f"""
test.Echo * {CALLER} {TARGET} allow
test.Echo * {CALLER} @default allow target={TARGET}
test.Asked * {CALLER} @anyvm ask default_target={TARGET}
test.Hold * {CALLER} {TARGET} allow
admin.vm.List * {MANAGER} @adminvm allow
admin.vm.Start * {MANAGER} {TARGET} allow target=@adminvm
admin.vm.feature.Set * {MANAGER} {TARGET} allow target=@adminvm
admin.vm.volume.ImportWithSize +private {MANAGER} test-filled allow target=@adminvm
"""
FLOOD_TIMEOUT_S = 300.0
VOLUME, MARK = 8 << 20, "content-of-a-volume"
SERVICE = 'echo "$QREXEC_REMOTE_DOMAIN:$QREXEC_SERVICE_ARGUMENT"; cat; exit 3'


@pytest.fixture(scope="module")
def qubes(daemon: DaemonProcess) -> Iterator[None]:
    """The four qubes of these tests; the target has its services on its own disk."""

    async def make() -> None:
        client = daemon.client
        for name in (CALLER, TARGET, MANAGER, BASE):
            await create_app_qube(client, name)
        await client.call("admin.vm.property.Set", BASE, arg="template_for_dispvms", payload=b"True")
        await client.call("admin.vm.property.Set", CALLER, arg="default_dispvm", payload=BASE.encode())
        await client.start(TARGET)
        folder = "/usr/local/etc/qubes-rpc"
        script = "\\n".join(("#!/bin/sh", SERVICE, "")).replace("'", "")
        for name in ("test.Echo", "test.Asked"):
            command = f"mkdir -p {folder}; printf '{script}' > {folder}/{name}; chmod 755 {folder}/{name}"
            await sh(daemon, TARGET, command, user="root")
        await sh(daemon, TARGET, f"printf '#!/bin/sh\\nsleep 1000\\n' > {folder}/test.Hold", user="root")
        await sh(daemon, TARGET, f"chmod 755 {folder}/test.Hold; sync", user="root")
        for name in (CALLER, MANAGER):
            await client.start(name)

    PolicyStore(daemon.paths.policy).replace("20-test", RULES.encode(), "any")
    asyncio.run(make())
    yield

    async def remove() -> None:
        for name in (CALLER, TARGET, MANAGER, BASE):
            await discard(daemon, name)

    asyncio.run(remove())
    PolicyStore(daemon.paths.policy).remove("20-test", "any")


@pytest.fixture
async def asker(daemon: DaemonProcess) -> AsyncIterator[ScriptedAgent]:
    made = ScriptedAgent(daemon.paths.policy_agent_socket)
    await made.start()
    yield made
    await made.close()


async def call(daemon: DaemonProcess, target: str, service: str, stdin: bytes = b"", caller: str = CALLER) -> Result:
    """As a person does in a terminal of the caller."""
    return await run(daemon, caller, f"qrexec-client-vm '{target}' {service}", stdin=stdin)


async def names(daemon: DaemonProcess) -> list[str]:
    return [row.name for row in await daemon.client.list_qubes()]


@pytest.mark.usefixtures("qubes")
class TestCalls:
    async def test_allowed_call_runs_in_the_target_and_its_output_and_code_come_back(
        self, daemon: DaemonProcess
    ) -> None:
        for target in (TARGET, ""):
            result = await call(daemon, target, "test.Echo+some.argument", b"hello")
            assert (result.code, result.out) == (3, f"{CALLER}:some.argument\nhello".encode())

    async def test_denied_calls_are_refused_and_tell_the_caller_nothing_else(self, daemon: DaemonProcess) -> None:
        """MC-18, MC-27."""
        for target, service in ((TARGET, "qubes.VMShell"), (TARGET, "test.None"), ("dom0", "admin.vm.List")):
            result = await call(daemon, target, service)
            assert result.code == 126
            assert b"refused" in result.err.lower()
        claimed = await run(daemon, CALLER, f"qrexec-client-vm --source-qube={MANAGER} dom0 admin.vm.List")
        assert claimed.code == 126

    async def test_asked_call_goes_where_the_user_says_and_nowhere_without_one(
        self, daemon: DaemonProcess, asker: ScriptedAgent
    ) -> None:
        """MC-31."""
        asker.answer = f"allow:{TARGET}".encode()
        result = await call(daemon, "", "test.Asked", b"hi")
        assert (result.code, result.out) == (3, f"{CALLER}:\nhi".encode())
        assert asker.questions[0].default_target == TARGET
        assert CALLER not in asker.questions[0].targets
        asker.answer = b"deny"
        assert (await call(daemon, "", "test.Asked")).code == 126
        await asker.close()
        daemon.paths.policy_agent_socket.unlink(missing_ok=True)
        assert (await call(daemon, "", "test.Asked")).code == 126
        await asker.start()

    async def test_prompt_goes_with_the_program_that_caused_it(
        self, daemon: DaemonProcess, asker: ScriptedAgent
    ) -> None:
        """MC-24."""
        asker.may_answer.clear()
        asking = "qrexec-client-vm '' test.Asked < /dev/null & echo $! > /tmp/asking; wait $!"
        calling = asyncio.create_task(run(daemon, CALLER, asking))
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while not asker.questions:
                await asyncio.sleep(0.05)
        await sh(daemon, CALLER, "kill $(cat /tmp/asking)")
        assert (await calling).code == 128 + signal.SIGTERM
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while not asker.withdrawn:
                await asyncio.sleep(0.05)

    async def test_call_of_a_disposable_runs_in_a_new_one_that_is_gone_afterwards(self, daemon: DaemonProcess) -> None:
        result = await call(daemon, "@dispvm", "qubes.VMShell", b"hostname; exit 5\n")
        assert result.code == 5
        name = result.text
        assert name.startswith("disp")
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while name in await names(daemon):
                await asyncio.sleep(0.1)

    async def test_disposable_goes_when_its_opener_goes(self, daemon: DaemonProcess) -> None:
        """MC-69."""
        result = await run(
            daemon, CALLER, "echo 'hostname; sleep 1000' | timeout 20 qrexec-client-vm @dispvm qubes.VMShell"
        )
        assert result.code == 124
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while any(name.startswith("disp") for name in await names(daemon)):
                await asyncio.sleep(0.1)

    async def test_halted_target_is_started(self, daemon: DaemonProcess) -> None:
        await daemon.client.kill(TARGET)
        results = await asyncio.gather(*(call(daemon, TARGET, "test.Echo", b"%d" % n) for n in range(3)))
        assert [result.code for result in results] == [3] * 3

    async def test_target_that_is_killed_ends_the_call(self, daemon: DaemonProcess) -> None:
        """MC-22."""
        calling = asyncio.create_task(call(daemon, TARGET, "test.Hold"))
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while (await run(daemon, TARGET, "pgrep -f test.Hold")).code:
                pass
        await daemon.client.kill(TARGET)
        assert (await calling).code == 255
        await daemon.client.start(TARGET)

    async def test_time_of_the_host(self, daemon: DaemonProcess) -> None:
        told = await call(daemon, "dom0", "qubes.GetDate")
        assert told.text.startswith(time.strftime("%Y-%m-%dT", time.gmtime()))
        assert told.text.endswith("+00:00")

    async def test_management_qube_administers_another_under_policy(self, daemon: DaemonProcess) -> None:
        """MC-108."""
        listed = await call(daemon, "dom0", "admin.vm.List", caller=MANAGER)
        assert listed.out.startswith(b"0\0")
        assert TARGET.encode() not in listed.out  # it may not list that one
        await daemon.client.kill(TARGET)
        started = await call(daemon, TARGET, "admin.vm.Start", caller=MANAGER)
        assert (started.code, started.out) == (0, b"0\0")
        [row] = await daemon.client.list_qubes(TARGET)
        assert row.state == "Running"
        assert (await call(daemon, TARGET, "admin.vm.feature.Set+x", b"1", caller=MANAGER)).out == b"0\0"
        assert (await call(daemon, BASE, "admin.vm.feature.Set+x", b"1", caller=MANAGER)).code == 126
        assert (await call(daemon, TARGET, "admin.vm.Kill", caller=MANAGER)).code == 126

    async def test_user_is_asked_in_the_qube_that_shows_the_callers_windows(self, daemon: DaemonProcess) -> None:
        """The published service; what serves it there is played by a script."""
        script = b"#!/bin/sh\ncat > /tmp/question; printf allow:" + TARGET.encode()
        install = "cat > /usr/local/etc/qubes-rpc/policy.Ask; chmod 755 /usr/local/etc/qubes-rpc/policy.Ask"
        assert (await run(daemon, TARGET, install, user="root", stdin=script)).code == 0
        await daemon.client.set_property("guivm", TARGET, CALLER)
        try:
            result = await call(daemon, "@default", "test.Asked+x", b"hi")
            assert (result.code, result.out) == (3, f"{CALLER}:x\nhi".encode())
            question = json.loads(await sh(daemon, TARGET, "cat /tmp/question"))
            assert (question["source"], question["default_target"]) == (CALLER, TARGET)
        finally:
            await daemon.client.set_property("guivm", "dom0", CALLER)

    async def test_management_qube_fills_the_volume_of_another(self, daemon: DaemonProcess) -> None:
        """More than a message has: it goes into the volume as a stream."""
        await create_app_qube(daemon.client, "test-filled")
        make = f"truncate -s {VOLUME} image && printf {MARK} | dd of=image bs=1 seek=5000000 conv=notrunc status=none"
        await sh(daemon, MANAGER, make)
        fill = f"(echo {VOLUME}; cat image) | qrexec-client-vm test-filled admin.vm.volume.ImportWithSize+private"
        filled = await run(daemon, MANAGER, fill)
        assert (filled.code, filled.out) == (0, b"0\0"), filled
        folder = daemon.paths.default_pool / "qubes" / "test-filled" / "private"
        assert [path for path in folder.iterdir() if MARK.encode() in path.read_bytes()]
        await daemon.client.remove("test-filled")

    async def test_flood_of_one_qube_leaves_another_its_calls(self, daemon: DaemonProcess) -> None:
        """MC-15, MC-23."""
        flood = (
            "for n in $(seq 60); do qrexec-client-vm dom0 qubes.GetDate < /dev/null & done; "
            "for n in $(seq 60); do qrexec-client-vm dom0 test.None < /dev/null & done; wait"
        )
        # (120 interpreters of an emulated guest, beside other tests: what the flood takes is not what is asked.)
        flooding = asyncio.create_task(run(daemon, CALLER, flood, timeout_s=FLOOD_TIMEOUT_S))
        result = await call(daemon, "dom0", "qubes.GetDate", caller=MANAGER)
        assert result.code == 0
        assert (await flooding).out.count(b"+00:00") == 60

    async def test_log_has_every_call_with_its_rule(self, daemon: DaemonProcess) -> None:
        log = (daemon.paths.logs / "calls.log").read_text()
        assert '"rule": "20-test.policy:2"' in log
        assert "hello" not in log
