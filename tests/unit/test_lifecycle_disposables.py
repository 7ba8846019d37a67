"""Disposables with a fake hypervisor: made in one step, gone at their end, some held ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.hal.driver import Machine
from insula.lifecycle import nobody
from insula.lifecycle.disposables import MAX_READY, ready_of, refill_delay_s, wanted_ready
from insula.lifecycle.engine import CreateRequest
from insula.model.errors import QubesException
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.state import PowerState
from insula.model.system import System
from insula.testing.fake_session import FakeSession
from insula.testing.lifecycle_bench import TEMPLATE, WORK, Bench, engine_bench

DVM = QubeName("dvm")


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(nobody, "REST_STEP_S", 0.0)
    async with engine_bench(tmp_path) as made:
        await made.engine.create(CreateRequest("AppVM", DVM, "red", template=TEMPLATE))
        with_property(made, DVM, "template_for_dispvms", value=True)
        made.published.clear()
        yield made


def with_property(bench: Bench, name: QubeName, prop: str, value: str | bool | int) -> None:
    system = bench.host.store.system
    bench.host.store.commit(system.with_qube(system.get(name).with_property(prop, value)))


def with_feature(bench: Bench, name: QubeName, feature: str, value: str) -> None:
    system = bench.host.store.system
    bench.host.store.commit(system.with_qube(system.get(name).with_feature(feature, value)))


def ready(bench: Bench) -> list[QubeName]:
    return ready_of(bench.host.store.system.get(DVM))


async def refilled(bench: Bench, count: int) -> list[QubeName]:
    with_feature(bench, DVM, "preload-dispvm-max", str(count))
    await bench.engine.preload_disposables(DVM)
    return ready(bench)


def disposables(bench: Bench) -> set[str]:
    return {qube.name for qube in bench.host.store.system.qubes.values() if qube.klass == "DispVM"}


async def test_disposable_is_made_with_its_number_tags_and_end(bench: Bench) -> None:
    name = await bench.engine.create_disposable(DVM, WORK)
    qube = bench.host.store.system.get(name)
    assert name == f"disp{qube.properties['dispid']}"
    assert qube.properties["auto_cleanup"] is True
    assert {"created-by-work", "disp-created-by-work"} <= qube.tags
    assert qube.label == "red"
    assert bench.engine.power_state(name) is PowerState.HALTED


async def test_disposable_is_gone_when_it_ends_however_it_ends(bench: Bench) -> None:
    for end in ("kill", "power_off", "panic"):
        name = await bench.engine.create_disposable(DVM, WORK)
        await bench.engine.start(name)
        if end == "kill":
            await bench.engine.kill(name)
        else:
            getattr(bench.guest(name), end)()
        async with asyncio.timeout(120):
            while name in bench.host.store.system.qubes:
                await asyncio.sleep(0)
    assert bench.leftovers() == []
    assert list(bench.folder.glob("pool/**/*disp*")) == []


async def test_console_of_a_disposable_is_not_kept(bench: Bench) -> None:
    name = await bench.engine.create_disposable(DVM, WORK)
    await bench.engine.start(name)
    kept = bench.host.console_folder / f"{name}.console.log"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("what its programs said")
    await bench.engine.kill(name)
    assert name not in bench.host.store.system.qubes
    assert not kept.exists()


async def test_every_disk_of_a_disposable_is_encrypted_with_a_key_nobody_keeps(bench: Bench) -> None:
    name = await bench.engine.create_disposable(DVM, WORK)
    await bench.engine.start(name)
    keys = [disk.source.key for disk in bench.guest(name).spec.disks]
    assert all(keys)
    assert len(set(keys)) == len(keys)
    record = str(bench.host.store.machines()[name])
    database = b"".join(path.read_bytes() for path in bench.folder.glob("system.db*"))
    for key in keys:
        assert key is not None
        assert key.decode() not in record
        assert key not in database


async def test_template_that_does_not_allow_them_is_refused(bench: Bench) -> None:
    with pytest.raises(QubesException, match="template_for_dispvms"):
        await bench.engine.create_disposable(WORK, ADMIN_NAME)
    assert disposables(bench) == set()


async def test_ready_ones_run_paused_and_internal(bench: Bench) -> None:
    names = await refilled(bench, 2)
    assert len(names) == 2
    for name in names:
        assert bench.engine.power_state(name) is PowerState.PAUSED
        assert bench.host.store.system.get(name).features["internal"] == "1"


async def test_ready_one_has_booted_to_its_end_rehearsed_and_been_woken_once_before_it_waits(bench: Bench) -> None:
    """What had not been done by then would be done while somebody waits."""
    [name] = await refilled(bench, 1)
    told = [service for service, words in bench.sessions.of(name).told if not words]
    assert told[0] == "qubes.VMExec+true"
    assert told[1] == "qubes.WaitForRunningSystem"
    assert told[2:] == [*told[2 : 2 + (len(told) - 2) // 2]] * 2
    assert "qubes.VMExec+python3+--c+pass" in told
    calls = [call for machine, call in bench.computer.script.calls if machine == name]
    assert [call for call in calls if call in ("resume", "pause")] == ["resume", "pause", "resume", "pause"]


async def test_one_that_cannot_rehearse_is_held_ready_nevertheless(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang_up(self: FakeSession, service: str, words: bytes, user: str = "root") -> None:
        raise TimeoutError

    monkeypatch.setattr(FakeSession, "tell_service", hang_up)
    [name] = await refilled(bench, 1)
    assert bench.engine.power_state(name) is PowerState.PAUSED
    assert "could be rehearsed" in caplog.text


async def test_one_that_ends_while_it_is_made_ready_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(machine: Machine) -> None:
        bench.guest(machine.spec.name).die()
        await machine.wait_gone()

    monkeypatch.setattr(nobody, "wait_until_at_rest", die)
    with pytest.raises(QubesException):
        await refilled(bench, 1)
    assert ready(bench) == []
    assert disposables(bench) == set()


async def test_daemon_that_ends_while_one_is_made_ready_ends_though_that_one_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left to be cleared up, the end of the daemon is not forgotten over it."""
    begun = asyncio.Event()

    async def rest_for_ever(machine: Machine) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(nobody, "wait_until_at_rest", rest_for_ever)
    with_feature(bench, DVM, "preload-dispvm-max", "1")
    await bench.engine.disposables.open()
    async with asyncio.timeout(120):
        await begun.wait()
        [name] = disposables(bench)
        await bench.engine.kill(QubeName(name))
        await bench.engine.disposables.close()
    assert disposables(bench) == set()


async def test_request_takes_the_first_ready_one_and_its_maker_is_the_caller(bench: Bench) -> None:
    first, second = await refilled(bench, 2)
    name = await bench.engine.create_disposable(DVM, WORK)
    assert name == first
    assert ready(bench) == [second]
    qube = bench.host.store.system.get(name)
    assert "internal" not in qube.features
    assert "disp-created-by-work" in qube.tags
    assert bench.engine.power_state(name) is PowerState.RUNNING
    assert "domain-preload-dispvm-used" in bench.names_of("dvm")
    await bench.engine.kill(name)
    assert name not in bench.host.store.system.qubes


async def test_ready_one_that_died_is_passed_over(bench: Bench) -> None:
    first, second = await refilled(bench, 2)
    bench.guest(first).panic()
    async with asyncio.timeout(120):
        while first in bench.host.store.system.qubes:
            await asyncio.sleep(0)
    assert await bench.engine.create_disposable(DVM, WORK) == second
    assert ready(bench) == []


async def test_ready_ones_are_renewed_when_what_they_were_made_from_changed(bench: Bench) -> None:
    [old] = await refilled(bench, 1)
    await bench.engine.start(DVM)
    await bench.engine.shutdown(DVM, force=False, wait=True)
    await bench.engine.preload_disposables(DVM)
    [new] = ready(bench)
    assert new != old
    assert old not in bench.host.store.system.qubes


async def test_fewer_wanted_ones_are_thrown_away(bench: Bench) -> None:
    await refilled(bench, 3)
    assert len(await refilled(bench, 1)) == 1
    assert len(disposables(bench)) == 1
    assert await refilled(bench, 0) == []
    assert disposables(bench) == set()


async def test_memory_is_never_used_up_by_ready_ones(bench: Bench) -> None:
    bench.engine.disposables._available_mib = lambda: 700  # type: ignore[method-assign]
    assert await refilled(bench, 2) == []
    with_feature(bench, ADMIN_NAME, "preload-dispvm-threshold", "5000")
    bench.engine.disposables._available_mib = lambda: 5300  # type: ignore[method-assign]
    assert await refilled(bench, 2) == []


async def test_one_that_cannot_be_started_leaves_nothing(bench: Bench) -> None:
    bench.computer.script.fail_next("resume")
    with pytest.raises(QubesException):
        await refilled(bench, 1)
    assert ready(bench) == []
    assert disposables(bench) == set()


async def test_refill_happens_by_itself_after_a_use_and_after_a_change(bench: Bench) -> None:
    with_feature(bench, ADMIN_NAME, "preload-dispvm-delay", "0")
    with_feature(bench, DVM, "preload-dispvm-max", "1")
    await bench.engine.disposables.open()
    async with asyncio.timeout(120):
        while len(ready(bench)) != 1:
            await asyncio.sleep(0)
    used = await bench.engine.create_disposable(DVM, WORK)
    async with asyncio.timeout(120):
        while len(ready(bench)) != 1:
            await asyncio.sleep(0)
    assert used not in ready(bench)


async def test_after_a_crash_of_the_daemon_they_are_used_or_replaced(bench: Bench) -> None:
    [first] = await refilled(bench, 1)
    await bench.reopen()
    assert ready(bench) == [first]
    assert bench.engine.power_state(first) is PowerState.PAUSED
    bench.guest(first).die()
    await bench.reopen()
    await bench.engine.preload_disposables(DVM)
    assert first not in ready(bench)
    assert len(ready(bench)) == 1


async def test_request_does_not_wait_for_a_refill_that_is_under_way(bench: Bench) -> None:
    [first] = await refilled(bench, 1)
    with_feature(bench, DVM, "preload-dispvm-max", "2")
    gate = bench.computer.script.hold_next("start_paused")
    refill = asyncio.create_task(bench.engine.preload_disposables(DVM))
    while bench.computer.script.calls[-1][1] != "start_paused":
        await asyncio.sleep(0)
    async with asyncio.timeout(120):
        assert await bench.engine.create_disposable(DVM, WORK) == first
    gate.set()
    await refill
    assert len(ready(bench)) == 2
    assert first not in ready(bench)


async def test_requests_at_the_same_time_get_different_ones(bench: Bench) -> None:
    both = await refilled(bench, 2)
    taken = await asyncio.gather(*(bench.engine.create_disposable(DVM, WORK) for _ in both))
    assert sorted(taken) == sorted(both)
    assert ready(bench) == []


async def test_next_ones_are_not_made_beside_one_that_was_just_taken(bench: Bench) -> None:
    """It is told to go on before it is told to be used: neither begins the refill at once."""
    await refilled(bench, 1)
    with_feature(bench, ADMIN_NAME, "preload-dispvm-delay", "0.2")
    await bench.engine.disposables.open()
    begin = asyncio.get_running_loop().time()
    await bench.engine.create_disposable(DVM, WORK)
    async with asyncio.timeout(120):
        while len(ready(bench)) != 1:
            await asyncio.sleep(0.001)
    assert asyncio.get_running_loop().time() - begin >= 0.2


async def test_ready_one_that_does_not_go_on_is_thrown_away_and_the_next_one_used(bench: Bench) -> None:
    first, second = await refilled(bench, 2)
    bench.computer.script.fail_next("resume")
    assert await bench.engine.create_disposable(DVM, WORK) == second
    assert first not in bench.host.store.system.qubes
    assert ready(bench) == []


@pytest.mark.parametrize("held", [0, 1])
async def test_disposable_has_its_features_from_the_first_moment(bench: Bench, held: int) -> None:
    await refilled(bench, held)
    name = await bench.engine.create_disposable(DVM, WORK, {"insula-leased": "1"})
    assert bench.host.store.system.get(name).features == {"insula-leased": "1"}


async def test_ready_one_that_went_on_unrecorded_is_thrown_away_by_the_next_daemon(bench: Bench) -> None:
    [first] = await refilled(bench, 1)
    await bench.engine.unpause(first)
    await bench.reopen()
    await bench.engine.preload_disposables(DVM)
    assert first not in bench.host.store.system.qubes
    assert first not in ready(bench)


async def test_disposable_that_ended_while_no_daemon_ran_is_gone_one_that_waits_for_its_start_is_not(
    bench: Bench,
) -> None:
    ended = await bench.engine.create_disposable(DVM, WORK)
    await bench.engine.start(ended)
    running = await bench.engine.create_disposable(DVM, WORK)
    await bench.engine.start(running)
    halted = await bench.engine.create_disposable(DVM, WORK)
    await bench.crash()
    bench.guest(ended).die()
    await bench.open()
    assert disposables(bench) == {running, halted}
    assert list(bench.folder.glob(f"pool/**/{ended}")) == []


def system_with(bench: Bench, template: dict[str, str], admin: dict[str, str], default: str | None = None) -> System:
    system = bench.host.store.system
    dvm, dom0 = system.get(DVM), system.get(ADMIN_NAME)
    for name, value in template.items():
        dvm = dvm.with_feature(name, value)
    for name, value in admin.items():
        dom0 = dom0.with_feature(name, value)
    system = system.with_qubes([dvm, dom0])
    return system if default is None else system.with_property("default_dispvm", default)


async def test_wanted_number_is_the_templates_or_for_the_default_one_the_systems(bench: Bench) -> None:
    wanted = "preload-dispvm-max"
    assert wanted_ready(system_with(bench, {}, {})) == {}
    assert wanted_ready(system_with(bench, {wanted: "2"}, {})) == {DVM: 2}
    assert wanted_ready(system_with(bench, {wanted: "2"}, {wanted: "5"}, "dvm")) == {DVM: 5}
    assert wanted_ready(system_with(bench, {wanted: "2"}, {wanted: "5"})) == {DVM: 2}
    assert wanted_ready(system_with(bench, {wanted: "many"}, {})) == {DVM: 0}
    assert wanted_ready(system_with(bench, {wanted: "1000000"}, {})) == {DVM: MAX_READY}


@pytest.mark.parametrize(("text", "delay"), [("", 3.0), ("0", 0.0), ("1.5", 1.5), ("-1", None), ("x", 3.0)])
async def test_refill_delay_is_read_as_published(bench: Bench, text: str, delay: float | None) -> None:
    assert refill_delay_s(system_with(bench, {}, {"preload-dispvm-delay": text})) == delay
