"""Events derived from the difference of two systems."""

from __future__ import annotations

from uuid import UUID

from insula.admin.changes import announcements
from insula.events.types import Event
from insula.model.klass import Klass
from insula.model.labels import Label
from insula.model.names import QubeName
from insula.model.qube import Qube
from insula.model.system import PoolConfig, System

WORK = Qube(name=QubeName("work"), klass=Klass.APPVM, qid=1, uuid=UUID(int=1), label="red")


def both(old: Qube, new: Qube) -> tuple[list[Event], list[Event]]:
    told = announcements(System().with_qube(old), System().with_qube(new))
    return list(told.before), list(told.after)


def test_same_system_has_no_events() -> None:
    assert both(WORK, WORK) == ([], [])


def test_label_is_a_property() -> None:
    values = {"name": "label", "oldvalue": "red", "newvalue": "blue"}
    assert both(WORK, WORK.with_label("blue")) == (
        [Event("work", "property-pre-set:label", values)],
        [Event("work", "property-set:label", values)],
    )


def test_none_and_numbers_are_text() -> None:
    _, after = both(WORK, WORK.with_property("netvm", None).with_property("memory", 400))
    assert [dict(event.kwargs) for event in after] == [
        {"name": "netvm", "newvalue": "None"},
        {"name": "memory", "newvalue": "400"},
    ]


def test_value_set_to_the_same_has_no_event() -> None:
    qube = WORK.with_property("memory", 400)
    assert both(qube, qube.with_property("memory", 400)) == ([], [])


def test_true_and_one_are_different_values() -> None:
    _, after = both(WORK.with_property("debug", False), WORK.with_property("debug", True))
    assert after[0].kwargs == {"name": "debug", "oldvalue": "False", "newvalue": "True"}


def test_tags_have_no_event_before() -> None:
    before, after = both(WORK.with_tags(["a"]), WORK.with_tags(["b"]))
    assert before == []
    assert [event.name for event in after] == ["domain-tag-delete:a", "domain-tag-add:b"]


def test_notes_volumes_labels_pools_and_new_qubes_have_no_events() -> None:
    old = System().with_qube(WORK)
    other = Qube(name=QubeName("other"), klass=Klass.APPVM, qid=2, uuid=UUID(int=2), label="red")
    new = old.with_qube(WORK.with_notes("x")).with_new_qube(other).with_pool(PoolConfig("p", "qcow2"))
    new = new.with_label(Label("teal", 1, 9))
    assert announcements(old, new).after == ()
    assert announcements(new, old).after == ()
