"""What the processes of a daemon cost: found by descent, measured by their proportional set size. Shared by scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except OSError:
                continue
            found += children
            waiting += children
    return found


def pss_kib(pid: int) -> int:
    """Proportional set size; 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


@dataclass(frozen=True)
class Memory:
    """Proportional memory of what runs below a daemon, in KiB."""

    monitors: int
    others: int
    processes: int


def measure(daemon_pid: int) -> Memory:
    """Machine monitors, and everything else below the daemon (sandboxes, session processes, their parent)."""
    monitors = others = count = 0
    for pid in descendants(daemon_pid):
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            continue
        count += 1
        if name.startswith("qemu-system"):
            monitors += pss_kib(pid)
        else:
            others += pss_kib(pid)
    return Memory(monitors, others, count)
