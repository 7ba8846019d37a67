import pytest

from insula.lifecycle.memory import MemoryLedger, available_mib, read_available_mib
from insula.model.errors import QubesMemoryError


def test_available_is_read_from_meminfo() -> None:
    assert available_mib("MemTotal: 4096 kB\nMemAvailable:  2097152 kB\n") == 2048


def test_available_on_this_host_is_positive() -> None:
    assert read_available_mib() > 0


def test_promise_beyond_free_memory_is_refused_with_figures() -> None:
    ledger = MemoryLedger(lambda: 1000, reserve_mib=300)
    with pytest.raises(QubesMemoryError, match=r"needs 701 MiB, 700 MiB can be given"), ledger.promise("work", 701):
        pass


def test_promises_of_concurrent_starts_add_up_and_end() -> None:
    ledger = MemoryLedger(lambda: 1000, reserve_mib=300)
    with ledger.promise("a", 400):
        with pytest.raises(QubesMemoryError), ledger.promise("b", 400):
            pass
        with ledger.promise("c", 300):
            pass
    with ledger.promise("b", 700):
        pass
