"""Run every benchmark and write ``docs/benchmarks.md``: the figures, the machine, the verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
NOT_BENCHMARKS = frozenset({"processes", "raw_port", "report", "run_all", "untrimmed"})


def run(script: Path) -> list[dict[str, object]] | None:
    """Cases of one script, None if it could not measure."""
    print(f"==> {script.stem}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, str(script), "--json"], stdout=subprocess.PIPE, check=False, cwd=HERE.parent)
    if done.returncode != 0:
        return None
    result = json.loads(done.stdout.decode().strip().splitlines()[-1])
    cases: list[dict[str, object]] = result.get("cases", [result])
    for case in cases:
        case["machine"] = result["machine"]
    return cases


def line(case: dict[str, object]) -> str:
    verdict = {True: "met", False: "**missed**", None: "reported"}[case["ok"]]  # type: ignore[index]
    ratio = "" if case["ratio"] is None else f"{case['ratio']:.2f} × {case['baseline_what']}"
    cells = (case["name"], f"{case['value']:.4g} {case['unit']}", ratio, case["bar"], verdict, case["runs"])
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    scripts = sorted(p for p in HERE.glob("*.py") if p.stem not in NOT_BENCHMARKS)
    failed: list[str] = []
    rows: list[str] = []
    machine = ""
    for script in scripts:
        cases = run(script)
        if cases is None:
            failed.append(script.stem)
            continue
        machine = str(cases[0]["machine"])
        rows += map(line, cases)
    notes = DOCUMENT.read_text().partition("\n## Notes\n")[2] if DOCUMENT.exists() else ""
    DOCUMENT.write_text(
        "# Benchmarks\n\n"
        "`make bench` measures and writes this page; each script in `benchmarks/` measures its baseline in the\n"
        "same run, so read the ratios, not the seconds.\n\n"
        f"Machine: {machine}. Measured {time.strftime('%Y-%m-%d')}.\n\n"
        "| what | value | against | promised | | runs |\n|---|---|---|---|---|---|\n"
        + "".join(f"{row}\n" for row in rows)
        + "".join(f"\n`{name}` could not measure.\n" for name in failed)
        + ("\n## Notes\n" + notes if notes else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
