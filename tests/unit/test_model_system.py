from dataclasses import FrozenInstanceError
from uuid import UUID

import pytest

from insula.model.errors import (
    QubesException,
    QubesLabelInUseError,
    QubesLabelNotFoundError,
    QubesPoolInUseError,
    QubesPoolNotFoundError,
    QubesVMAlreadyExistsError,
    QubesVMInUseError,
    QubesVMNotFoundError,
)
from insula.model.klass import Klass
from insula.model.labels import Label
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import set_property
from insula.model.qube import MAX_QID, Qube
from insula.model.system import MAX_DISPID, PoolConfig, System
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system, with_qube_of


def test_new_system_has_dom0_alone() -> None:
    dom0 = System().get("dom0")
    assert list(System().qubes) == [ADMIN_NAME]
    assert (dom0.klass, dom0.qid, dom0.uuid, dom0.label) == (Klass.ADMINVM, 0, UUID(int=0), "black")


def test_values_cannot_be_changed_in_place() -> None:
    system = small_system()
    with pytest.raises(FrozenInstanceError):
        system.qubes = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        system.qubes[WORK] = system.get(NET)  # type: ignore[index]
    with pytest.raises(TypeError):
        system.get(WORK).features["x"] = "1"  # type: ignore[index]


def test_change_leaves_the_old_value_as_it_was() -> None:
    before = small_system()
    names = set(before.qubes)
    after = before.without_qube(DISPOSABLE)
    assert set(before.qubes) == names
    assert set(after.qubes) == names - {DISPOSABLE}


def test_unknown_qube_is_named_in_the_error() -> None:
    with pytest.raises(QubesVMNotFoundError, match="nowhere"):
        small_system().get("nowhere")


def test_mc102_unknown_qube_with_odd_letters_gives_ascii_message() -> None:
    with pytest.raises(QubesVMNotFoundError) as error:
        small_system().get("wörk\x1b[31m\udcff")
    assert str(error.value).isascii()
    assert str(error.value).isprintable()


def test_qube_is_found_by_uuid() -> None:
    system = small_system()
    assert system.by_uuid(system.get(WORK).uuid).name == WORK
    with pytest.raises(QubesVMNotFoundError):
        system.by_uuid(UUID(int=2**100))


def test_sorted_qubes_puts_dom0_first() -> None:
    system = with_qube_of(small_system(), Klass.STANDALONEVM, "abc")
    assert [q.name for q in system.sorted_qubes()] == ["dom0", "abc", "debian-12", "disp1234", "sys-net", "work"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (ADMIN_NAME, "system itself"),
        (TEMPLATE, "template of sys-net"),
        (NET, "system's default_netvm"),
        (WORK, "template of disp1234"),
    ],
)
def test_mc59_used_qube_cannot_be_removed(name: QubeName, reason: str) -> None:
    with pytest.raises(QubesVMInUseError, match=reason):
        small_system().without_qube(name)


def test_qube_of_a_package_cannot_be_removed() -> None:
    system = set_property(small_system(), DISPOSABLE, "installed_by_rpm", True, all_halted)
    with pytest.raises(QubesVMInUseError, match="package"):
        system.without_qube(DISPOSABLE)


def test_qube_referring_to_itself_can_be_removed() -> None:
    system = small_system().without_qube(DISPOSABLE)
    system = set_property(system, WORK, "default_dispvm", WORK, all_halted)
    assert WORK not in system.without_qube(WORK).qubes


def test_based_on_and_appvms_of_tell_disposables_apart() -> None:
    system = small_system()
    assert {q.name for q in system.appvms_of(TEMPLATE)} == {NET, WORK}
    assert {q.name for q in system.based_on(WORK)} == {DISPOSABLE}
    assert system.appvms_of(WORK) == []


@pytest.mark.parametrize("taken", ["name", "qid", "uuid"])
def test_new_qube_with_taken_identity_is_refused(taken: str) -> None:
    system = small_system()
    other = system.get(WORK)
    qube = Qube(
        WORK if taken == "name" else QubeName("new"),
        Klass.STANDALONEVM,
        other.qid if taken == "qid" else 500,
        other.uuid if taken == "uuid" else UUID(int=500),
        "red",
    )
    with pytest.raises(QubesVMAlreadyExistsError):
        system.with_new_qube(qube)


def test_free_qid_is_the_lowest_not_taken() -> None:
    system = small_system().without_qube(DISPOSABLE)
    assert system.free_qid() == 4
    assert System().free_qid() == 1


def test_no_free_qid_is_an_error() -> None:
    qubes = [Qube(QubeName(f"q{n}"), Klass.STANDALONEVM, n, UUID(int=n), "red") for n in range(1, MAX_QID + 1)]
    with pytest.raises(QubesException, match="no number"):
        System().with_qubes(qubes).free_qid()


def test_free_dispid_skips_taken_numbers_and_names() -> None:
    system = with_qube_of(small_system(), Klass.STANDALONEVM, "disp1235")
    assert system.free_dispid(1234) == 1236
    assert system.free_dispid(7) == 7
    last = with_qube_of(system, Klass.DISPVM, "d", template=WORK, dispid=MAX_DISPID)
    assert last.free_dispid(MAX_DISPID) == 0


def test_label_in_use_cannot_be_removed() -> None:
    with pytest.raises(QubesLabelInUseError, match="work"):
        small_system().without_label("blue")
    assert "green" not in small_system().without_label("green").labels
    with pytest.raises(QubesLabelNotFoundError):
        small_system().without_label("pink")


@pytest.mark.parametrize("label", [Label("red", 1, 20), Label("pink", 1, 3)])
def test_label_with_taken_name_or_index_is_refused(label: Label) -> None:
    with pytest.raises(QubesLabelInUseError):
        System().with_label(label)


def test_pool_in_use_cannot_be_removed() -> None:
    system = small_system().with_pool(PoolConfig("spare", "qcow2"))
    with pytest.raises(QubesPoolInUseError, match="work"):
        system.without_pool("default")
    assert "spare" not in system.without_pool("spare").pools
    with pytest.raises(QubesPoolInUseError, match="default_pool_root"):
        system.with_property("default_pool_root", "spare").without_pool("spare")
    with pytest.raises(QubesPoolNotFoundError):
        system.without_pool("none")
