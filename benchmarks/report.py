"""What every benchmark shares: the machine's name, repeated runs, and one JSON object on the last line.

Shape: ``name, value, unit, baseline, baseline_what, ratio, bar, ok, runs, machine``; several of them in ``cases`` where
a script measures several things. ``ratio`` is value / baseline measured in the same run; ``bar`` says in words what
was promised. Exit status 0 whatever the verdict: a benchmark that could measure has done its job.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    name: str
    value: float
    unit: str
    baseline: float | None
    baseline_what: str
    bar: str
    ok: bool | None
    """None: reported, nothing was promised."""
    runs: int

    @property
    def ratio(self) -> float | None:
        return None if not self.baseline else self.value / self.baseline

    def to_json(self) -> dict[str, object]:
        fields = asdict(self)
        fields["value"] = round(self.value, 6)
        fields["baseline"] = None if self.baseline is None else round(self.baseline, 6)
        fields["ratio"] = None if self.ratio is None else round(self.ratio, 3)
        return fields


def machine() -> str:
    """This machine in words: CPU, cores, memory, kernel."""
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB, Linux {platform.release()}"


def median_of(measure: Callable[[], float], runs: int) -> float:
    return statistics.median(measure() for _ in range(runs))


def percentile(values: list[float], percent: float) -> float:
    """The value that ``percent`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def publish(name: str, cases: list[Case]) -> None:
    """Print a table for people on stderr and the JSON object on stdout."""
    for case in cases:
        verdict = {True: "ok", False: "MISSED", None: "reported"}[case.ok]
        against = "" if case.ratio is None else f", {case.ratio:.2f} × {case.baseline_what}"
        print(f"{case.name}: {case.value:.4g} {case.unit}{against} [{case.bar}] {verdict}", file=sys.stderr)
    body = cases[0].to_json() if len(cases) == 1 else {"name": name, "cases": [case.to_json() for case in cases]}
    print(json.dumps({**body, "machine": machine()}))
