"""Machines in waiting as lifecycle keeps them: a fake hypervisor, a real pool and a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from insula.hal.driver import ExitKind, MachineExit, MachineState
from insula.hal.fake import SEED_NAMES, FakeGuest
from insula.lifecycle import nobody, seed_keeper, standby, start
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.standby import FEATURE, FIRST_NUMBER, MAX_WAITING, StandbyCount, wanted
from insula.model.errors import QubesMemoryError
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import set_property
from insula.model.state import PowerState
from insula.testing.lifecycle_bench import TEMPLATE, WORK, Bench, engine_bench

OTHER = QubeName("other")
PATIENCE_S = 120.0
"""For what happens in a moment, on a very busy machine."""
WAITS = f"waiting.{FIRST_NUMBER}"


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A seed is there, no machine waits, and none will before somebody wants one."""
    monkeypatch.setattr(seed_keeper, "QUIET_S", 0.0)
    monkeypatch.setattr(nobody, "REST_STEP_S", 0.0)
    monkeypatch.setattr(standby, "QUIET_S", 0.0)
    # No mke2fs for disks that no guest looks at.
    monkeypatch.setattr(standby, "format_disk", lambda path: None)
    async with engine_bench(tmp_path, with_seeds=True) as made:
        want(made, 0)
        await made.engine.build_seed(WORK)
        await made.engine.create(CreateRequest("AppVM", OTHER, "red", template=TEMPLATE))
        yield made


def want(bench: Bench, count: int, holder: QubeName = ADMIN_NAME) -> None:
    """Say how many should wait, as the Admin API does."""
    system = bench.host.store.system
    bench.host.store.commit(system.with_qube(system.get(holder).with_feature(FEATURE, str(count))))
    bench.host.publish(holder, f"domain-feature-set:{FEATURE}", feature=FEATURE, value=str(count))


def waiting(bench: Bench) -> list[FakeGuest]:
    return [guest for guest in bench.computer.living() if guest.spec.name.startswith("waiting.")]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def rested(bench: Bench, count: int) -> None:
    """That many wait, known to those who hand them out."""
    async with asyncio.timeout(PATIENCE_S):
        while (await counts(bench)).waiting != count:
            await asyncio.sleep(0.001)


async def counts(bench: Bench) -> StandbyCount:
    assert bench.engine.standby is not None
    found = await bench.engine.standby.counts()
    return next(iter(found.values()), StandbyCount(0, 0, 0))


async def one_waits(bench: Bench) -> FakeGuest:
    want(bench, 1)
    await rested(bench, 1)
    [guest] = waiting(bench)
    return guest


async def test_machine_that_waits_has_frame_memory(bench: Bench) -> None:
    guest = await one_waits(bench)
    assert guest.frames is not None
    await bench.engine.start(WORK)
    assert bench.guest("work").frames is guest.frames


async def test_start_takes_the_machine_that_waits(bench: Bench) -> None:
    guest = await one_waits(bench)
    uuid = guest.spec.uuid
    await bench.engine.start(WORK)
    assert bench.guest("work") is guest
    assert guest.state is MachineState.RUNNING
    assert guest.spec.name == "work"
    assert guest.spec.uuid == uuid
    assert guest.spec.qid == bench.host.store.system.get(WORK).qid
    assert guest.spec.host_number == FIRST_NUMBER
    assert guest.spec.runtime_dir == bench.folder / "run" / "work"
    assert (await counts(bench)).taken == 1


async def test_its_disks_are_the_qubes_and_the_root_goes_on(bench: Bench) -> None:
    guest = await one_waits(bench)
    [root, *others] = guest.spec.disks
    assert "work" not in str([disk.source.layers[0].path for disk in others])
    await bench.engine.start(WORK)
    own = bench.guest("work").spec.disks
    assert own[0].source.layers[1:] == root.source.layers[1:]
    assert own[0].source.layers[0] != root.source.layers[0]
    assert "work" in str(own[1].source.layers[-1].path)
    assert not {disk.source.layers[0].path for disk in others} & {disk.source.layers[0].path for disk in own}


async def test_second_rehearsal_begins_as_a_start_will(bench: Bench) -> None:
    """Paused, with disks to be looked at again, and a session that comes anew."""
    await one_waits(bench)
    of_power = [
        method
        for machine, method in bench.computer.script.calls
        if machine == WAITS and method in ("resume", "pause", "resize_disk", "open_channel")
    ]
    looks_again = ["resize_disk", "resize_disk"]
    assert of_power == [*looks_again, "open_channel", "resume", "pause"] * 2
    assert plays(bench) == ["start", "start"]


@pytest.mark.parametrize(("are_used", "first"), [(True, "window"), (False, "start")])
async def test_window_is_rehearsed_first_and_only_where_somebody_wants_some(
    bench: Bench, *, are_used: bool, first: str
) -> None:
    bench.host.windows = _Shows(are_used=are_used)  # type: ignore[assignment]
    await one_waits(bench)
    assert plays(bench) == [first, "start"]
    bench.host.windows = None


class _Shows:
    """Who shows windows, as far as it is asked."""

    def __init__(self, *, are_used: bool) -> None:
        self.are_used = are_used


def plays(bench: Bench) -> list[str]:
    return [session.keys["/insula-rehearsal"] for name, session in bench.sessions.launched if name == WAITS]


async def test_nobody_is_told_nothing_of_anybody(bench: Bench) -> None:
    await one_waits(bench)
    keys = bench.sessions.of(WAITS).keys
    assert (keys["/insula-seed"], keys["/insula-rehearsal"], keys["/name"]) == ("1", "start", "nobody-yet")
    values = set(keys.values())
    for qube in bench.host.store.system.sorted_qubes():
        assert not {qube.name, qube.uuid.hex} & values


async def test_qube_gets_its_keys_as_every_fork_does(bench: Bench) -> None:
    await bench.engine.start(WORK)
    forked = bench.sessions.of("work").keys
    await one_waits(bench)
    await bench.engine.kill(WORK)
    await bench.engine.start(WORK)
    waited = bench.sessions.of("work").keys
    assert bench.guest("work").spec.host_number is not None
    assert forked.keys() == waited.keys()
    assert {key for key in forked if forked[key] != waited[key]} == {"/qubes-random-seed"}


async def test_another_is_made_after_one_was_taken(bench: Bench) -> None:
    await one_waits(bench)
    await bench.engine.start(WORK)
    await rested(bench, 1)
    await bench.engine.start(OTHER)
    numbers = [bench.guest(name).spec.host_number for name in ("work", "other")]
    assert numbers == [FIRST_NUMBER, FIRST_NUMBER + 1]


async def test_number_is_free_again_when_its_qube_has_ended(bench: Bench) -> None:
    await one_waits(bench)
    await bench.engine.start(WORK)
    await rested(bench, 1)
    await bench.engine.kill(WORK)
    await bench.engine.start(OTHER)
    await rested(bench, 1)
    assert [guest.spec.host_number for guest in waiting(bench)] == [FIRST_NUMBER]


async def test_machine_that_cannot_be_turned_is_ended_and_the_start_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    guest = await one_waits(bench)
    bench.computer.script.fail_next("become")
    await bench.engine.start(WORK)
    assert guest.exit is not None
    assert bench.guest("work").is_fork and bench.guest("work").spec.host_number is None
    assert any("cannot be used" in record.message for record in caplog.records)


async def test_machine_that_does_not_answer_costs_time_and_no_seed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await one_waits(bench)
    monkeypatch.setattr(start, "FORK_LIMIT_S", 0.05)
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    await until(lambda: guest.exit is not None)
    monkeypatch.setattr(start, "FORK_LIMIT_S", 60)
    bench.sessions.answers = True
    await starting
    assert bench.guest("work").is_fork and bench.guest("work").spec.host_number is None
    assert bench.engine.seeds is not None and len(bench.engine.seeds.all()) == 1


async def test_machine_that_died_in_waiting_is_replaced(bench: Bench) -> None:
    guest = await one_waits(bench)
    guest.die()
    await until(lambda: waiting(bench) not in ([], [guest]))
    await rested(bench, 1)


async def test_dropped_seed_takes_its_machines_along(bench: Bench) -> None:
    guest = await one_waits(bench)
    assert bench.engine.seeds is not None
    [seed] = bench.engine.seeds.all()
    bench.engine.seeds.drop(seed.folder.name)
    await until(lambda: guest.exit is not None)
    await until(lambda: waiting(bench) == [] and bench.leftovers() == [])


async def test_damaged_seed_is_dropped_with_one_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert bench.engine.seeds is not None
    [seed] = bench.engine.seeds.all()
    bench.host.driver.unload_seed(seed.machine)
    (seed.machine / SEED_NAMES[0]).write_bytes(b"")
    want(bench, 1)
    await until(lambda: bench.engine.seeds is not None and bench.engine.seeds.all() == [])
    await until(lambda: waiting(bench) == [] and bench.leftovers() == [])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and seed.folder.name in warnings[0]


async def test_template_that_changed_ends_what_waits_with_the_old_root(bench: Bench) -> None:
    """MC-70: what was prepared before an update is not used after it."""
    guest = await one_waits(bench)
    await bench.engine.start(TEMPLATE)
    bench.guest("template").power_off()
    await until(lambda: guest.exit is not None)
    await bench.engine.start(WORK)
    assert bench.guest("work") is not guest


async def test_other_settings_are_another_seed_and_do_not_take_it(bench: Bench) -> None:
    guest = await one_waits(bench)
    system = bench.host.store.system
    bench.host.store.commit(system.with_qube(system.get(WORK).with_property("memory", 500)))
    await bench.engine.start(WORK)
    assert bench.guest("work") is not guest
    assert guest.exit is None


async def networked(bench: Bench, **properties: str | bool) -> None:
    """``work`` behind a net qube, with a seed of that kind."""
    net = QubeName("sys-net")
    await bench.engine.create(CreateRequest("AppVM", net, "red", template=TEMPLATE))
    values = (
        (net, "provides_network", True),
        (WORK, "netvm", net),
        *((WORK, key, properties[key]) for key in properties),
    )
    for name, key, value in values:
        system = bench.host.store.system
        bench.host.store.commit(set_property(system, name, key, value, bench.engine.power_state))
    await bench.engine.start(net)
    await bench.engine.build_seed(WORK)


async def test_qube_behind_a_net_qube_takes_one_with_an_interface(bench: Bench) -> None:
    await networked(bench)
    want(bench, 1)
    await bench.engine.start(WORK)
    await bench.engine.kill(WORK)
    standby = bench.engine.standby
    assert standby is not None
    await until(lambda: [kind for kind in standby._kinds.values() if kind.plan.nic is not None and kind.machines])
    await bench.engine.start(WORK)
    [guest] = [guest for guest in bench.computer.living() if guest.spec.name == "work"]
    assert guest.spec.host_number is not None
    assert guest.linked_to is not None


async def test_none_waits_for_an_address_of_its_own_or_to_become_a_net_qube(bench: Bench) -> None:
    await networked(bench, mac="00:16:3e:00:00:01")
    want(bench, 1)
    await bench.engine.start(WORK)
    assert bench.engine.standby is not None
    kinds = [kind for kind in bench.engine.standby._kinds.values() if kind.plan.nic is not None or kind.plan.links]
    assert kinds
    assert [bench.engine.standby._wanted(kind) for kind in kinds] == [0] * len(kinds)


async def test_none_is_made_when_memory_is_short(bench: Bench) -> None:
    bench.available_mib = standby.ROOM_MIB
    want(bench, 1)
    await bench.engine.start(WORK)
    await asyncio.sleep(0.05)
    assert waiting(bench) == []


async def test_start_that_finds_no_memory_ends_what_waits(bench: Bench) -> None:
    guest = await one_waits(bench)
    bench.available_mib = 600
    with pytest.raises(QubesMemoryError):
        await bench.engine.start(WORK)
    assert guest.exit is not None


async def test_what_waits_is_ended_when_memory_becomes_short(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "LOOK_S", 0.0)
    guest = await one_waits(bench)
    bench.available_mib = standby.SHORT_MIB - 1
    await until(lambda: guest.exit is not None)


async def test_what_was_not_used_for_long_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "LOOK_S", 0.0)
    guest = await one_waits(bench)
    monkeypatch.setattr(standby, "KEPT_S", 0.0)
    await until(lambda: guest.exit is not None)
    await asyncio.sleep(0.01)
    assert waiting(bench) == []


async def test_as_many_wait_as_the_feature_says(bench: Bench) -> None:
    want(bench, 3)
    await rested(bench, 3)
    want(bench, 1)
    await rested(bench, 1)
    want(bench, 0)
    await until(lambda: waiting(bench) == [] and bench.leftovers() == [])


async def test_failed_rehearsal_leaves_nothing_and_is_not_tried_again_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.computer.script.fail_next("pause")
    want(bench, 1)
    await until(lambda: any("held in waiting" in record.message for record in caplog.records))
    assert waiting(bench) == []
    assert bench.leftovers() == []
    await bench.engine.start(WORK)
    await asyncio.sleep(0.05)
    assert waiting(bench) == []


async def test_daemon_that_ends_while_one_is_made_ends_though_that_one_does_not(bench: Bench) -> None:
    """What fails while it clears up must not take the place of its own end."""
    script = bench.computer.script
    script.hold_next("pause")
    want(bench, 1)
    await until(lambda: "pause" in [call for machine, call in script.calls if machine.startswith("waiting.")])
    script.fail_next("kill")
    assert bench.engine.standby is not None
    async with asyncio.timeout(PATIENCE_S):
        await bench.engine.standby.close()


async def test_next_daemon_ends_what_waited_and_keeps_the_numbers_of_qubes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await one_waits(bench)
    await bench.engine.start(WORK)
    await rested(bench, 1)
    [guest] = waiting(bench)
    bench.computer.script.fail_next("kill")  # The first daemon dies before it can end it.
    await bench.reopen()
    assert guest.exit == MachineExit(ExitKind.KILLED, "discarded")
    # It is what happens to each that waits when a daemon dies: nothing to warn of.
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    await bench.engine.start(OTHER)
    await rested(bench, 1)
    assert bench.guest("work").spec.host_number == FIRST_NUMBER
    assert FIRST_NUMBER not in [guest.spec.host_number for guest in waiting(bench)]


async def test_kill_while_it_is_turned_ends_it(bench: Bench) -> None:
    guest = await one_waits(bench)
    gate = bench.computer.script.hold_next("become")
    starting = asyncio.create_task(bench.engine.start(WORK))
    await until(lambda: "become" in {method for _, method in bench.computer.script.calls})
    await bench.engine.kill(WORK)
    gate.set()
    await asyncio.gather(starting, return_exceptions=True)
    assert guest.exit is not None
    assert bench.engine.power_state(WORK) is PowerState.HALTED


@pytest.mark.parametrize(
    ("of_template", "of_dom0", "is_emulated", "count"),
    [
        (None, None, True, 1),
        (None, None, False, 0),
        (None, "3", False, 3),
        ("0", "3", True, 0),
        ("2", None, True, 2),
        ("many", "3", True, 3),
        ("99", None, True, MAX_WAITING),
    ],
)
async def test_wish_of_the_template_counts_then_dom0s_then_what_is_sensible(
    bench: Bench, of_template: str | None, of_dom0: str | None, is_emulated: bool, count: int
) -> None:
    system = bench.host.store.system
    for name, value in ((TEMPLATE, of_template), (ADMIN_NAME, of_dom0)):
        qube = system.get(name).without_feature(FEATURE)
        system = system.with_qube(qube if value is None else qube.with_feature(FEATURE, value))
    assert wanted(system, TEMPLATE, is_emulated=is_emulated) == count
