from __future__ import annotations

from contextlib import ExitStack

import pytest

from insula.rpc import quota
from insula.rpc.quota import Place, Quota, QuotaExceeded
from insula_proto.limits import MAX_CALLS


def test_call_of_a_qube_that_serves_nobody_is_its_own_origin() -> None:
    with Quota().making("work") as place:
        assert place == Place("work", 1)


def test_call_inside_a_call_is_one_deeper_and_charged_to_who_began() -> None:
    """MC-23: a longer chain counts, whichever it belongs to."""
    limits = Quota()
    with limits.serving("b", "a", Place("a", 1)), limits.serving("b", "y", Place("x", 4)), limits.making("b") as place:
        assert place == Place("x", 5)
    with limits.making("b") as place:
        assert place == Place("b", 1)


def test_chain_that_is_too_deep_is_refused_until_it_ends() -> None:
    """MC-23."""
    limits = Quota()
    with limits.serving("b", "a", Place("a", quota.MAX_DEPTH)):
        with pytest.raises(QuotaExceeded, match="begun by a"), limits.making("b"):
            pass
        with limits.making("c"):
            pass
    with limits.making("b"):
        pass


def test_calls_of_one_qube_are_limited_and_others_go_on() -> None:
    """MC-15."""
    limits = Quota()
    with ExitStack() as held:
        for _ in range(quota.MAX_CALLS_OF_QUBE):
            held.enter_context(limits.making("work"))
        with pytest.raises(QuotaExceeded), limits.making("work"):
            pass
        with limits.making("other"):
            pass


def test_one_caller_cannot_keep_a_service_from_all_others() -> None:
    """MC-15: the last places are for those who have few."""
    limits = Quota()
    with ExitStack() as held:
        for _ in range(MAX_CALLS - quota.LAST_PLACES):
            held.enter_context(limits.serving("vault", "greedy", Place("greedy", 1)))
        with pytest.raises(QuotaExceeded, match="few places left"), limits.serving("vault", "greedy", Place("x", 1)):
            pass
        for number in range(4):
            for _ in range(quota.FEW):
                held.enter_context(limits.serving("vault", f"other{number}", Place("x", 1)))
        with limits.serving("elsewhere", "greedy", Place("greedy", 1)):
            pass
    assert limits._loads == {}


def test_disposables_are_limited_by_origin() -> None:
    """MC-68."""
    limits = Quota()
    with ExitStack() as held:
        for depth in range(quota.MAX_DISPOSABLES_OF_ORIGIN):
            held.enter_context(limits.disposable(Place("work", depth)))
        with pytest.raises(QuotaExceeded, match="for work"), limits.disposable(Place("work", 9)):
            pass
        with limits.disposable(Place("other", 1)):
            pass


def test_nothing_is_kept_of_qubes_without_calls() -> None:
    limits = Quota()
    with limits.making("a") as place, limits.serving("b", "a", place), limits.disposable(place):
        pass
    with limits.serving("b", "a", Place("a", quota.MAX_DEPTH)), pytest.raises(QuotaExceeded), limits.making("b"):
        pass
    assert limits._loads == {}
    assert not limits._disposables
