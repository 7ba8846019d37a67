"""Installing a template; what a new installation gets with the first one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.template import DEFAULT_DISPVM, provide_default_dispvm
from insula.model.errors import StoragePoolException
from insula.model.properties import allows_disposables
from insula.storage.pool import NoSpace
from insula.testing.lifecycle_bench import TEMPLATE, Bench, engine_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with engine_bench(tmp_path) as made:
        yield made


async def test_first_template_brings_what_disposables_are_made_from(bench: Bench) -> None:
    await provide_default_dispvm(bench.host, bench.engine, TEMPLATE)
    system = bench.host.store.system
    made = system.get(DEFAULT_DISPVM)
    assert (made.template, made.label) == (TEMPLATE, "red")
    assert allows_disposables(system, made)
    assert system.properties["default_dispvm"] == DEFAULT_DISPVM
    assert "property-set:default_dispvm" in bench.names_of("")
    await provide_default_dispvm(bench.host, bench.engine, TEMPLATE)
    assert bench.host.store.system == system


async def test_what_the_user_chose_stays_be_it_none(bench: Bench) -> None:
    store = bench.host.store
    store.commit(store.system.with_property("default_dispvm", None))
    await provide_default_dispvm(bench.host, bench.engine, TEMPLATE)
    assert DEFAULT_DISPVM not in store.system.qubes
    assert store.system.properties["default_dispvm"] is None


async def test_qube_that_has_the_name_and_is_something_else_stays_as_it_is(bench: Bench) -> None:
    await bench.engine.create(CreateRequest("AppVM", DEFAULT_DISPVM, "blue", template=TEMPLATE))
    system = bench.host.store.system
    await provide_default_dispvm(bench.host, bench.engine, TEMPLATE)
    assert bench.host.store.system == system


async def test_failure_leaves_nothing_and_the_next_time_makes_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as broken:
        broken.setattr(bench.host.pools["default"], "create", full)
        with pytest.raises(StoragePoolException, match="full"):
            await provide_default_dispvm(bench.host, bench.engine, TEMPLATE)
    assert DEFAULT_DISPVM not in bench.host.store.system.qubes
    await provide_default_dispvm(bench.host, bench.engine, TEMPLATE)
    assert DEFAULT_DISPVM in bench.host.store.system.qubes
