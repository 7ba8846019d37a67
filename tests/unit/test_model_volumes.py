from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.block import GIB
from insula.model.errors import QubesException, QubesValueError
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.system import PoolConfig, System
from insula.model.volumes import as_started, default_pools, parse_volume_size, refreshed, volumes_for
from insula.testing.systems import DISPOSABLE, TEMPLATE, WORK, small_system, with_qube_of

POOLS = dict.fromkeys(("root", "private", "volatile", "kernel"), "default")


def shape(klass: Klass, template: str | None) -> dict[str, tuple[str, int, str | None]]:
    of = None if template is None else small_system().get(template)
    made = volumes_for(klass, QubeName("new"), of, POOLS, kernel="6.1")
    return {
        name: (
            "keep" if v.save_on_stop else "snapshot" if v.snap_on_start else "throw-away" if v.rw else "ro",
            v.size // GIB,
            v.source,
        )
        for name, v in made.items()
    }


@pytest.mark.parametrize("klass", [Klass.TEMPLATEVM, Klass.STANDALONEVM])
def test_qube_without_template_keeps_root_and_private(klass: Klass) -> None:
    assert shape(klass, None) == {
        "root": ("keep", 10, None),
        "private": ("keep", 2, None),
        "volatile": ("throw-away", 10, None),
        "kernel": ("ro", 0, None),
    }


def test_app_qube_keeps_private_only() -> None:
    assert shape(Klass.APPVM, TEMPLATE) == {
        "root": ("snapshot", 10, "qubes/debian-12/root"),
        "private": ("keep", 2, None),
        "volatile": ("throw-away", 10, None),
        "kernel": ("ro", 0, None),
    }


def test_disposable_keeps_nothing_and_has_root_of_its_templates_template() -> None:
    assert shape(Klass.DISPVM, WORK) == {
        "root": ("snapshot", 10, "qubes/debian-12/root"),
        "private": ("snapshot", 2, "qubes/work/private"),
        "volatile": ("throw-away", 12, None),
        "kernel": ("ro", 0, None),
    }


def test_all_a_disposable_writes_is_encrypted_what_others_write_is_not() -> None:
    system = with_qube_of(small_system(), Klass.STANDALONEVM, "alone")
    for name in (DISPOSABLE, WORK, TEMPLATE, "alone"):
        qube = system.get(name)
        started = {volume.name: as_started(qube, volume) for volume in qube.volumes.values()}
        expected = name == DISPOSABLE
        assert [v.ephemeral for v in started.values()] == [expected, expected, expected, False]
        assert all(replace(started[v.name], ephemeral=v.ephemeral) == v for v in qube.volumes.values())


def test_chosen_encryption_of_a_volatile_volume_is_kept_at_its_start() -> None:
    qube = small_system().get(WORK)
    chosen = replace(qube.volumes["volatile"], ephemeral=True)
    assert as_started(qube, chosen).ephemeral


def test_disposable_of_standalone_has_that_ones_root() -> None:
    system = with_qube_of(small_system(), Klass.STANDALONEVM, "alone")
    made = volumes_for(Klass.DISPVM, QubeName("d"), system.get("alone"), POOLS)
    assert made["root"].source == "qubes/alone/root"


def test_dom0_and_remote_qubes_have_no_volumes() -> None:
    assert volumes_for(Klass.ADMINVM, ADMIN_NAME, None, POOLS) == {}
    assert volumes_for(Klass.REMOTEVM, QubeName("far"), None, POOLS) == {}


def test_identifiers_name_qube_and_volume_and_kernel_its_version() -> None:
    made = volumes_for(Klass.STANDALONEVM, QubeName("new"), None, POOLS, kernel="6.1")
    assert [v.vid for v in made.values()] == ["qubes/new/root", "qubes/new/private", "qubes/new/volatile", "6.1"]


def test_pool_can_be_chosen_but_not_for_a_snapshot() -> None:
    template = small_system().get(TEMPLATE)
    chosen = volumes_for(Klass.APPVM, WORK, template, POOLS, chosen={"private": "fast", "root": "default"})
    assert (chosen["private"].pool, chosen["root"].pool, chosen["volatile"].pool) == ("fast", "default", "default")
    with pytest.raises(QubesException, match="snapshot"):
        volumes_for(Klass.APPVM, WORK, template, POOLS, chosen={"root": "fast"})
    with pytest.raises(QubesException, match="no volume"):
        volumes_for(Klass.APPVM, WORK, template, POOLS, chosen={"home": "fast"})


def test_qube_needing_a_template_is_refused_without() -> None:
    with pytest.raises(QubesException, match="no template"):
        volumes_for(Klass.APPVM, WORK, None, POOLS)
    with pytest.raises(QubesException, match="no template"):
        volumes_for(Klass.APPVM, WORK, System().get("dom0"), POOLS)


def test_default_pools_follow_properties() -> None:
    system = small_system().with_pool(PoolConfig("fast", "qcow2")).with_property("default_pool_private", "fast")
    assert default_pools(system) == {**POOLS, "private": "fast"}
    with pytest.raises(QubesException, match="no storage pool"):
        default_pools(System())


def test_resized_template_root_is_seen_by_all_snapshots() -> None:
    system = small_system()
    template = system.get(TEMPLATE)
    root = template.volumes["root"]
    bigger = type(root)(**{**vars(root), "size": 20 * GIB})
    after = refreshed(system.with_qube(template.with_volume(bigger)))
    assert {after.get(name).volumes["root"].size for name in (WORK, DISPOSABLE)} == {20 * GIB}
    assert after.get(WORK).volumes["private"].size == 2 * GIB


def test_refreshed_system_without_change_is_the_same_object() -> None:
    system = small_system()
    assert refreshed(system) is system


@pytest.mark.parametrize(
    "text", ["", "0", "-512", "0512", "1.5", "5e2", "511", "５１２", "1" * 20, str(2**60), "512\n"]
)
def test_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(QubesValueError):
        parse_volume_size(text)


@given(st.integers(1, 2**44))
def test_any_multiple_of_a_sector_is_a_size(sectors: int) -> None:
    assert parse_volume_size(str(sectors * 512)) == sectors * 512
