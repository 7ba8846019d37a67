from dataclasses import replace
from uuid import UUID

import pytest

from insula.lifecycle.create import borrowers_of, disks_of, first_content, plan_create, require_unborrowed
from insula.lifecycle.engine import CreateRequest
from insula.model.errors import (
    QubesException,
    QubesLabelNotFoundError,
    QubesNoTemplateError,
    QubesPoolNotFoundError,
    QubesVMAlreadyExistsError,
    QubesVMInUseError,
    QubesVMNotFoundError,
)
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import allows_disposables
from insula.model.system import PoolConfig, System

EMPTY = System(pools={"default": PoolConfig("default", "qcow2"), "big": PoolConfig("big", "qcow2")})
TEMPLATE = QubeName("debian-12")
WORK = QubeName("work")


def request(klass: str = "AppVM", name: QubeName = WORK, label: str = "blue", **more: object) -> CreateRequest:
    return CreateRequest(klass=klass, name=name, label=label, **more)  # type: ignore[arg-type]


@pytest.fixture
def system() -> System:
    return plan_create(EMPTY, request("TemplateVM", TEMPLATE, "black"), UUID(int=1))


def test_app_qube_gets_a_snapshot_of_its_templates_root_and_a_private_volume(system: System) -> None:
    qube = plan_create(system, request(template=TEMPLATE), UUID(int=2)).get(WORK)
    assert qube.klass is Klass.APPVM
    assert qube.template == TEMPLATE
    assert (qube.volumes["root"].source, qube.volumes["root"].snap_on_start) == ("qubes/debian-12/root", True)
    assert qube.volumes["private"].save_on_stop
    assert [v.name for v in disks_of(qube)] == ["root", "private", "volatile"]
    assert "created-by-dom0" in qube.tags


def test_app_qube_without_template_takes_the_default_one(system: System) -> None:
    with pytest.raises(QubesNoTemplateError):
        plan_create(system, request(), UUID(int=2))
    system = system.with_property("default_template", TEMPLATE)
    assert plan_create(system, request(), UUID(int=2)).get(WORK).template == TEMPLATE


def test_qids_are_never_given_twice(system: System) -> None:
    one = plan_create(system, request(template=TEMPLATE), UUID(int=2))
    two = plan_create(one, request(name=QubeName("other"), template=TEMPLATE), UUID(int=3))
    qids = [q.qid for q in two.qubes.values()]
    assert len(set(qids)) == len(qids) == 4


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"name": TEMPLATE, "template": QubeName("gone"), "label": "no"}, QubesVMAlreadyExistsError),
        ({"template": QubeName("gone"), "label": "no"}, QubesVMNotFoundError),
        ({"template": TEMPLATE, "label": "no", "pool": "gone"}, QubesLabelNotFoundError),
        ({"template": TEMPLATE, "pool": "gone"}, QubesPoolNotFoundError),
        ({"template": TEMPLATE, "pools": {"root": "big"}}, QubesException),
        ({"template": TEMPLATE, "pools": {"nothing": "big"}}, QubesException),
    ],
)
def test_errors_come_in_the_published_order_and_change_nothing(
    system: System, bad: dict[str, object], error: type[Exception]
) -> None:
    before = dict(system.qubes)
    with pytest.raises(error):
        plan_create(system, request(**bad), UUID(int=2))  # type: ignore[arg-type]
    assert dict(system.qubes) == before


def test_pool_applies_to_every_volume_but_snapshots(system: System) -> None:
    qube = plan_create(system, request(template=TEMPLATE, pool="big"), UUID(int=2)).get(WORK)
    assert {v.name: v.pool for v in disks_of(qube)} == {"root": "default", "private": "big", "volatile": "big"}


def test_app_qube_cannot_be_made_from_an_app_qube(system: System) -> None:
    system = plan_create(system, request(template=TEMPLATE), UUID(int=2))
    with pytest.raises(QubesException):
        plan_create(system, request(name=QubeName("other"), template=WORK), UUID(int=3))


def test_template_in_use_is_named_with_its_borrowers(system: System) -> None:
    """MC-59"""
    system = plan_create(system, request(template=TEMPLATE), UUID(int=2))
    assert borrowers_of(system, TEMPLATE) == [WORK]
    assert borrowers_of(system, WORK) == []
    with pytest.raises(QubesVMInUseError, match="work"):
        require_unborrowed(system, TEMPLATE)


def test_disposables_can_be_made_of_it_from_its_first_moment_on(system: System) -> None:
    made = plan_create(system, request(template=TEMPLATE, disposables=True), UUID(int=2))
    assert allows_disposables(made, made.get(WORK))
    assert not allows_disposables(system, system.get(TEMPLATE))


def test_disposable_has_what_was_said_about_its_template_and_is_made_by_whom_it_is_made(system: System) -> None:
    """MC-86."""
    system = plan_create(system, request(template=TEMPLATE, disposables=True), UUID(int=2))
    said = {"netvm": None, "debug": True, "autostart": True, "ip": "10.137.0.9"}
    features = {"service.x": "1", "internal": "1", "preload-dispvm-max": "2", "preload-dispvm": "disp1"}
    qube = replace(system.get(WORK), features=features).with_tags(["anon-vm", "created-by-mgmt"])
    for key, value in said.items():
        qube = qube.with_property(key, value)
    system = system.with_qube(qube)
    name = QubeName("disp7")
    wish = request("DispVM", name, "red", template=WORK, disposable=True, created_by="other")
    made = plan_create(system, wish, UUID(int=3)).get(name)
    assert {key: made.properties.get(key, "unset") for key in said} == {
        "netvm": None, "debug": True, "autostart": "unset", "ip": "unset",
    }  # fmt: skip
    assert made.features == {"service.x": "1"}
    assert {tag for tag in made.tags if "vm-" not in tag} == {"anon-vm", "created-by-other", "disp-created-by-other"}


def test_kept_private_volumes_alone_have_a_file_system_from_the_start(system: System) -> None:
    system = plan_create(system, request(template=TEMPLATE), UUID(int=2))
    filled = [v.vid for q in system.sorted_qubes() for v in disks_of(q) if first_content(v) is not None]
    assert filled == ["qubes/debian-12/private", "qubes/work/private"]


@pytest.mark.parametrize(("option", "ephemeral"), [("True", True), ("False", False), (None, False)])
def test_volatile_volume_is_ephemeral_where_its_pool_says_so(
    system: System, option: str | None, ephemeral: bool
) -> None:
    options = {} if option is None else {"ephemeral_volatile": option}
    system = system.with_pool(PoolConfig("big", "qcow2", options))
    qube = plan_create(system, request(template=TEMPLATE, pools={"volatile": "big"}), UUID(int=2)).get(WORK)
    assert qube.volumes["volatile"].ephemeral is ephemeral
    assert not qube.volumes["private"].ephemeral
    other = plan_create(system, request(template=TEMPLATE, pools={"private": "big"}), UUID(int=2)).get(WORK)
    assert [v.name for v in other.volumes.values() if v.ephemeral] == []
