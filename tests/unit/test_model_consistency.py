from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given

from insula.model.consistency import problems
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import set_property
from insula.model.qube import Qube
from insula.model.system import System
from insula.testing.strategies import systems
from insula.testing.systems import NET, TEMPLATE, WORK, all_halted, small_system


def test_system_made_as_the_product_does_has_no_problem() -> None:
    assert problems(System()) == []
    assert problems(small_system()) == []


@given(systems())
def test_generated_systems_have_no_problem(system: System) -> None:
    assert problems(system) == []


def work(system: System) -> Qube:
    return system.get(WORK)


BREAKS: dict[str, Callable[[System], System]] = {
    "no dom0": lambda s: replace(s, qubes={name: q for name, q in s.qubes.items() if name != ADMIN_NAME}),
    "or it is not as it must be": lambda s: s.with_qube(replace(s.get("dom0"), uuid=UUID(int=5))),
    "class or the number of dom0": lambda s: s.with_qube(replace(work(s), klass=Klass.ADMINVM)),
    "out of range": lambda s: s.with_qube(replace(work(s), qid=10001)),
    "same number": lambda s: s.with_qube(replace(work(s), qid=s.get(NET).qid)),
    "same UUID": lambda s: s.with_qube(replace(work(s), uuid=s.get(NET).uuid)),
    "same name": lambda s: s.with_qube(replace(work(s), name=QubeName("WORK"), qid=99, uuid=UUID(int=99))),
    "kept as": lambda s: replace(s, qubes={**s.qubes, QubeName("x"): replace(work(s), qid=99, uuid=UUID(int=99))}),
    "reserved": lambda s: s.with_qube(Qube(QubeName("none"), Klass.STANDALONEVM, 99, UUID(int=99), "red")),
    "no label 'pink'": lambda s: s.with_qube(work(s).with_label("pink")),
    "no template": lambda s: s.with_qube(work(s).without_property("template")),
    "netvm is 'gone'": lambda s: s.with_qube(work(s).with_property("netvm", "gone")),
    "default_netvm is 'gone'": lambda s: s.with_property("default_netvm", "gone"),
    "no property 'x'": lambda s: s.with_qube(work(s).with_property("x", 1)),
    "qid cannot be set": lambda s: s.with_qube(work(s).with_property("qid", 1)),
    "icon cannot be set": lambda s: s.with_qube(work(s).with_property("icon", "x")),
    "not of type int": lambda s: s.with_qube(work(s).with_property("memory", True)),
    "not of type bool": lambda s: s.with_qube(work(s).with_property("debug", 1)),
    "not printable": lambda s: s.with_qube(work(s).with_property("kernelopts", "a\nb")),
    "feature's name": lambda s: s.with_qube(work(s).with_feature("a b", "")),
    "printable ASCII": lambda s: s.with_qube(work(s).with_feature("a", "é")),
    "Tag": lambda s: s.with_qube(work(s).with_tags(["a b"])),
    "notes are not text": lambda s: s.with_qube(work(s).with_notes("\udcff")),
    "does not exist": lambda s: s.with_qube(work(s).with_volume(replace(work(s).volumes["root"], pool="gone"))),
    "exactly if": lambda s: s.with_qube(work(s).with_volume(replace(work(s).volumes["root"], source=None))),
    "negative": lambda s: s.with_qube(work(s).with_volume(replace(work(s).volumes["root"], size=-1))),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_broken_system_is_found(problem: str) -> None:
    assert any(problem in found for found in problems(BREAKS[problem](small_system())))


def test_reference_to_a_removed_qube_is_found_in_unchanged_ones() -> None:
    before = small_system()
    after = replace(before, qubes={name: q for name, q in before.qubes.items() if name != TEMPLATE})
    assert problems(after, since=before)


def test_changed_value_is_found_compared_with_before() -> None:
    before = small_system()
    after = before.with_qube(work(before).with_feature("a b", ""))
    assert problems(after, since=before)
    assert problems(set_property(before, WORK, "memory", 500, all_halted), since=before) == []
