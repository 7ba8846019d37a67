"""Calls between qubes: real session processes and the real broker; the guests are the test's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from insula.model.errors import QubesException
from insula.rpc import quota
from insula.rpc.host_services import HostCall, HostReply, HostService
from insula.testing.agent import AGENT_FOLDER, FakeQube
from insula.testing.call_world import CallWorld, call_world, echo
from insula.testing.scripted_guest import Answer, ScriptedGuest, Served, talk
from insula_proto import limits
from insula_proto.qrexec_channel import CallerEnd

pytestmark = pytest.mark.timeout(300)

CLIENT_VM = "import sys; from insula_agent.client_vm import main; sys.exit(main())"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CallWorld]:
    async with call_world(tmp_path) as made:
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


async def wait(call: Served) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError(call)


async def client_vm(qube: FakeQube, *arguments: str) -> asyncio.subprocess.Process:
    """The program that qubes call services with."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", "-c", CLIENT_VM, "-a", str(qube.agent_socket), *arguments),
        cwd=AGENT_FOLDER.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


# --- the target ----------------------------------------------------------------------------------------------------


async def test_halted_target_is_started_once_for_two_calls_and_serves_both(world: CallWorld) -> None:
    """MC-56: as far as the broker goes; one start for all is the engine's."""
    world.rules("test.Echo * work vault allow user=root")
    work = await world.boot("work")
    world.add("vault")
    results = await asyncio.gather(*(work.call("test.Echo", "vault") for _ in range(2)))
    assert [result and result.out for result in results] == [b"|root:QUBESRPC test.Echo+ work"] * 2
    assert world.started[0] == "vault"


async def test_target_that_must_not_be_started_or_cannot_be_is_refused(world: CallWorld) -> None:
    world.rules("test.Echo * work vault allow autostart=no\ntest.Echo * work gone allow\n")
    work = await world.boot("work")
    world.add("vault")
    world.add("gone")

    async def fail(name: str) -> None:
        raise QubesException(f"no memory for {name}")

    world.on_start = fail
    assert await work.call("test.Echo", "vault") is None
    assert world.started == []
    assert await work.call("test.Echo", "gone") is None
    assert world.records()[-1]["reason"] == "no memory for gone"


async def test_disposable_that_cannot_be_made_is_a_refusal_with_its_reason(world: CallWorld) -> None:
    world.rules("test.Echo * work @dispvm allow")
    world.add("dvm", template_for_dispvms=True)
    work = await world.boot("work", default_dispvm="dvm")

    async def fail(name: str) -> None:
        raise QubesException(f"no memory for {name}")

    world.on_start = fail
    assert await work.call("test.Echo", "@dispvm") is None
    await until(lambda: bool(world.records()))
    assert world.records()[-1]["reason"] == "no memory for disp1"
    assert "disp1" not in world.facts


async def test_paused_target_is_refused_instead_of_kept_waiting(world: CallWorld) -> None:
    world.rules("test.Echo * work vault allow")
    work, _ = await world.boot("work"), await world.boot("vault")
    world.set_state("vault", "Paused")
    assert await work.call("test.Echo", "vault") is None
    assert world.records()[-1]["reason"] == "vault is paused"


async def test_target_replaced_by_another_of_its_name_while_it_starts_is_not_called(world: CallWorld) -> None:
    """MC-20."""
    world.rules("test.Echo * work vault allow")
    work = await world.boot("work")
    world.add("vault")

    async def replace_it(name: str) -> None:
        world.remove(name)
        world.disposables.append("")  # another number, so another UUID
        world.add(name)

    world.on_start = replace_it
    assert await work.call("test.Echo", "vault") is None
    assert world.guests["vault"].executed == []


async def test_redirected_call_goes_where_the_rule_says(world: CallWorld) -> None:
    world.rules("test.Echo * work @default allow target=vault")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    result = await work.call("test.Echo")
    assert result is not None
    assert result.code == 7


async def test_target_spelt_by_uuid_is_not_a_way_to_call_oneself(world: CallWorld) -> None:
    """The published answer would allow it: see ``Allow.objection``."""
    world.rules("* * @anyvm @anyvm allow")
    work = await world.boot("work")
    assert await work.call("test.Echo", f"uuid:{world.facts['work'].uuid}") is None
    assert world.records()[-1]["decision"] == "denied"


async def test_call_of_a_remote_qube_goes_to_its_relay_in_its_form(world: CallWorld) -> None:
    world.rules("test.Echo * work far allow user=root")
    work, relay = await world.boot("work"), await world.boot("relay")
    relay.services["test.Relay"] = echo
    world.add("far", klass="RemoteVM", relayvm="relay", transport_rpc="test.Relay", power_state="Running")
    result = await work.call("test.Echo+x", "far")
    assert result is not None
    assert result.out == b"|user:QUBESRPC test.Relay+far+test.Echo+x work"


async def test_relay_calls_in_the_name_of_its_remote_qube(world: CallWorld) -> None:
    world.rules("test.Echo * far vault allow\ntest.Echo * relay vault deny\n")
    relay, vault = await world.boot("relay"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    world.add("far", klass="RemoteVM", relayvm="relay", transport_rpc="test.Relay", power_state="Running")
    result = await relay.call("test.Echo", "vault", source="far")
    assert result is not None
    assert result.out == b"|user:QUBESRPC test.Echo+ far"


# --- disposables ---------------------------------------------------------------------------------------------------


async def test_call_of_a_disposable_makes_one_and_ends_it_with_the_call(world: CallWorld) -> None:
    world.rules("test.Echo * work @dispvm allow")
    world.add("dvm", template_for_dispvms=True)
    work = await world.boot("work", default_dispvm="dvm")
    result = await work.call("test.Echo", "@dispvm", stdin=b"x")
    assert result is not None
    assert result.out == b"x|user:QUBESRPC test.Echo+ work"
    await until(lambda: "disp1" not in world.facts)
    assert world.records()[-1]["server"] == "disp1"


async def test_disposable_whose_opener_goes_while_it_starts_is_removed(world: CallWorld) -> None:
    """MC-69."""
    world.rules("test.Echo * work @dispvm allow")
    world.add("dvm", template_for_dispvms=True)
    work = await world.boot("work", default_dispvm="dvm")
    starting = asyncio.Event()

    async def never(name: str) -> None:
        starting.set()
        await asyncio.Event().wait()

    world.on_start = never
    ident = work.new_ident()
    await work.ask("test.Echo", "@dispvm", ident=ident)
    await starting.wait()
    await work.say(work.control.withdraw_service(ident))
    await until(lambda: "disp1" not in world.facts)


async def test_disposables_begun_by_one_qube_are_limited(world: CallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-68: those that its disposables open are its own."""
    monkeypatch.setattr(quota, "MAX_DISPOSABLES_OF_ORIGIN", 2)
    world.rules("test.Echo * @anyvm @dispvm allow")
    world.add("dvm", template_for_dispvms=True)
    work = await world.boot("work", default_dispvm="dvm")
    for number in range(2):
        await (await work.ask("test.Echo", "@dispvm"))
        await until(lambda number=number: len(world.guests) == number + 2)  # type: ignore[misc]
    assert await work.call("test.Echo", "@dispvm") is None
    assert "disposables are there for work" in str(world.records()[-1]["reason"])


# --- the ends of a call --------------------------------------------------------------------------------------------


async def test_caller_that_resets_its_stream_ends_the_service(world: CallWorld) -> None:
    world.rules("test.Wait * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    connected = await (await work.ask("test.Wait", "vault"))
    assert connected is not None
    await until(lambda: bool(vault.executed))
    await work.stream_of(connected.port).reset()
    [served] = vault.streams.values()
    await served.until(lambda: served.is_reset)
    await work.terminated(connected.domain, connected.port)
    await until(lambda: bool(world.records()))


async def test_target_that_dies_leaves_the_caller_an_end_without_exit_code(world: CallWorld) -> None:
    """MC-22."""
    world.rules("test.Wait * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Wait"] = wait
    calling = asyncio.create_task(work.call("test.Wait", "vault"))
    await until(lambda: bool(vault.executed))
    await world.end("vault")
    result = await calling
    assert result is not None
    assert result.code is None


async def test_caller_that_dies_ends_the_service_and_leaves_nothing(world: CallWorld) -> None:
    world.rules("test.Wait * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    await (await work.ask("test.Wait", "vault"))
    await until(lambda: bool(vault.executed))
    await world.end("work")
    [served] = vault.streams.values()
    await served.until(lambda: served.is_reset)
    await until(lambda: not world.broker._calls)


async def test_answer_larger_than_every_buffer_arrives_whole_when_the_caller_reads_late(world: CallWorld) -> None:
    """MC-14: the service is paced meanwhile; nothing is lost when it ends long before its caller has read."""
    world.rules("test.Big * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    size = 8 << 20

    async def big(call: Served) -> Answer:
        return Answer(0, bytes(size))

    vault.services["test.Big"] = big
    connected = await (await work.ask("test.Big", "vault"))
    assert connected is not None
    stream = work.stream_of(connected.port)
    stream.reads = False
    talking = asyncio.create_task(talk(stream, b""))
    await until(lambda: len(stream.received) >= limits.MUX_SMALL_WINDOW // 2)
    held = len(stream.received)
    assert held < size // 2
    await stream.read_all()
    result = await talking
    assert (result.code, len(result.out)) == (0, size)


async def test_request_answered_by_a_policy_that_hangs_is_taken_back_with_its_caller(world: CallWorld) -> None:
    """MC-24: whoever lost its agent gets no answer later, and nothing waits for it."""
    world.rules("test.Echo * work vault allow")
    work = await world.boot("work")
    world.add("vault")
    starting = asyncio.Event()

    async def never(name: str) -> None:
        starting.set()
        await asyncio.Event().wait()

    world.on_start = never
    await work.ask("test.Echo", "vault")
    await starting.wait()
    await world.end("work")
    await until(lambda: not world.broker._calls)
    assert world.records()[-1]["decision"] == "withdrawn"


async def test_broker_that_has_closed_refuses_at_once(world: CallWorld) -> None:
    world.rules("test.Echo * work vault allow")
    work, _ = await world.boot("work"), await world.boot("vault")
    await world.broker.close()
    assert await work.call("test.Echo", "vault") is None


# --- limits --------------------------------------------------------------------------------------------------------


async def test_two_hundred_calls_at_once_all_succeed(world: CallWorld) -> None:
    """MC-15."""
    world.rules("test.Echo * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    results = await asyncio.gather(*(work.call("test.Echo", "vault", stdin=b"%d" % n) for n in range(200)))
    assert [result and result.out.partition(b"|")[0] for result in results] == [b"%d" % n for n in range(200)]


async def test_calls_over_the_quota_are_refused_and_another_qube_still_succeeds(world: CallWorld) -> None:
    """MC-15."""
    world.rules("test.Wait * work vault allow\ntest.Echo * other target allow\n")
    work, _ = await world.boot("work"), await world.boot("vault")
    other, target = await world.boot("other"), await world.boot("target")
    target.services["test.Echo"] = echo
    answers = [await work.ask("test.Wait", "vault") for _ in range(300)]
    result = await other.call("test.Echo", "target")
    assert result is not None
    assert result.code == 7
    refused = sum(answer is None for answer in await asyncio.gather(*answers))
    assert refused == 300 - (limits.MAX_CALLS - quota.LAST_PLACES)


async def test_two_qubes_that_call_each_other_without_end_are_stopped(world: CallWorld) -> None:
    """MC-23."""
    world.rules("test.Ping * @anyvm @anyvm allow")
    one, two = await world.boot("one"), await world.boot("two")

    def forwards(guest: ScriptedGuest, to: str) -> None:
        async def forward(call: Served) -> Answer:
            result = await guest.call("test.Ping", to)
            return Answer(0, b"refused" if result is None else result.out + b".")

        guest.services["test.Ping"] = forward

    forwards(one, "two")
    forwards(two, "one")
    result = await one.call("test.Ping", "two")
    assert result is not None
    assert result.out == b"refused" + b"." * (quota.MAX_DEPTH - 1)
    [refusal] = [record for record in world.records() if record["decision"] == "refused"]
    assert refusal["reason"] == f"calls inside calls, {quota.MAX_DEPTH} deep, begun by one"


# --- the policy ----------------------------------------------------------------------------------------------------


async def test_policy_changed_on_disk_judges_the_next_call(world: CallWorld) -> None:
    """MC-30."""
    world.rules("test.Echo * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    for number in range(6):
        world.rules(f"test.Echo * work vault {'deny' if number % 2 else 'allow'}")
        assert (await work.call("test.Echo", "vault") is None) == bool(number % 2)


async def test_policy_that_cannot_be_read_denies_everything(world: CallWorld) -> None:
    """MC-25, MC-27."""
    world.rules("test.Echo * work vault allow")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    assert await work.call("test.Echo", "vault") is not None
    (world.policy_folder / "60-bad.policy").write_text("nonsense\n")
    assert await work.call("test.Echo", "vault") is None
    assert world.policies[-1].problems
    world.policy_folder.rename(world.folder / "elsewhere")
    assert await work.call("test.Echo", "vault") is None


# --- the host as target --------------------------------------------------------------------------------------------


async def test_service_of_the_host_gets_the_payload_and_its_answer_comes_back(world: CallWorld) -> None:
    world.rules("test.Host * work @adminvm allow\ntest.Host * work vault allow target=@adminvm\n")
    work = await world.boot("work")
    world.add("vault")
    calls: list[HostCall] = []

    async def answer(call: HostCall) -> HostReply:
        calls.append(call)
        return HostReply(b"said " + call.untrusted_payload, 3, "words\n")

    world.services["test.Host"] = HostService(answer)
    for target in ("@adminvm", "dom0", "vault"):
        result = await work.call("test.Host+arg", target, stdin=b"x" * 60000)
        assert result is not None
        assert (result.code, result.out, result.err, result.domain) == (3, b"said " + b"x" * 60000, b"words\n", 0)
    assert [call.destination for call in calls] == ["dom0", "dom0", "vault"]
    assert calls[0] == HostCall("work", "test.Host", "arg", "dom0", b"x" * 60000)


async def test_payload_over_the_limit_never_reaches_the_host(world: CallWorld) -> None:
    """MC-11."""
    world.rules("test.Host * work @adminvm allow")
    work = await world.boot("work")

    async def answer(call: HostCall) -> HostReply:
        raise AssertionError("called")

    world.services["test.Host"] = HostService(answer, max_payload=10)
    result = await work.call("test.Host", "@adminvm", stdin=b"x" * 11)
    assert result is not None
    assert (result.code, result.err) == (125, b"The request is too long\n")


async def test_service_of_the_host_that_does_not_exist_or_fails_has_its_exit_code(world: CallWorld) -> None:
    """MC-22."""
    world.rules("* * work @adminvm allow")
    work = await world.boot("work")

    async def fail(call: HostCall) -> HostReply:
        raise RuntimeError("secret of ours")

    world.services["test.Bad"] = HostService(fail)
    for service, code in (("test.None", 127), ("test.Bad", 125)):
        result = await work.call(service, "@adminvm")
        assert result is not None
        assert result.code == code
        assert b"secret" not in result.err


async def test_stream_of_the_host_is_paced_and_ends_with_its_caller(world: CallWorld) -> None:
    """MC-14."""
    world.rules("test.Stream * work @adminvm allow")
    work = await world.boot("work")
    sent = 0
    ended = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal sent
        try:
            while True:
                yield bytes(65536)
                sent += 65536
        finally:
            ended.set()

    async def answer(call: HostCall) -> HostReply:
        return HostReply(pieces())

    world.services["test.Stream"] = HostService(answer, max_payload=0)
    connected = await (await work.ask("test.Stream", "@adminvm"))
    assert connected is not None
    stream = work.stream_of(connected.port)
    stream.reads = False
    await stream.send(CallerEnd().hello())
    await until(lambda: len(stream.received) >= limits.MUX_SMALL_WINDOW // 2)
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.05)
    assert sent < 8 << 20
    await stream.reset()
    await ended.wait()


# --- the log -------------------------------------------------------------------------------------------------------


async def test_record_has_names_decision_rule_and_sizes_and_never_what_was_said(world: CallWorld) -> None:
    """MC-109."""
    world.rules("# a comment\ntest.Echo * work vault allow\n")
    work, vault = await world.boot("work"), await world.boot("vault")
    vault.services["test.Echo"] = echo
    await work.call("test.Echo+arg", "vault", stdin=b"SECRET MARKER")
    await work.call("test.Other", "vault", stdin=b"SECRET MARKER")
    await until(lambda: len(world.records()) == 2)
    allowed, denied = sorted(world.records(), key=lambda record: int(str(record["number"])))
    assert {
        "caller": "work", "service": "test.Echo", "argument": "+arg", "target": "vault", "decision": "allowed",
        "rule": "50-test.policy:2", "server": "vault", "asked": False, "depth": 1,
    }.items() <= allowed.items()  # fmt: skip
    assert int(str(allowed["from_caller"])) > len("SECRET MARKER")
    assert (denied["decision"], denied["reason"], denied["rule"]) == ("denied", "no rule matches", "")
    assert "SECRET" not in (world.folder / "calls.log").read_text()


async def until(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.005)
