from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.rpc.pacing import BACKOFF_FORGIVEN, BACKOFF_LONGEST, Backoff, RateLimit


def test_backoff_faults_in_a_row_double_up_to_the_longest() -> None:
    backoff = Backoff()
    delays = [backoff.failed(0) for _ in range(9)]
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == BACKOFF_LONGEST


def test_backoff_connection_that_held_is_forgiven_a_short_one_is_not() -> None:
    backoff = Backoff()
    backoff.failed(0)
    backoff.succeeded(10)
    assert backoff.failed(11) == 2
    backoff.succeeded(20)
    assert backoff.failed(20 + BACKOFF_FORGIVEN) == 1


@given(st.lists(st.floats(0, 100), max_size=200))
def test_rate_limit_any_times_never_more_than_burst_and_rate(times: list[float]) -> None:
    limit = RateLimit(burst=5, per_second=2)
    moments = sorted(times)
    taken = sum(limit.take(moment) for moment in moments)
    span = moments[-1] if moments else 0
    assert taken <= 5 + 2 * span + 1e-6


def test_rate_limit_refills_with_time() -> None:
    limit = RateLimit(burst=1, per_second=1)
    assert [limit.take(now) for now in (0, 0.5, 1.0, 1.1, 2.2)] == [True, False, True, False, True]
