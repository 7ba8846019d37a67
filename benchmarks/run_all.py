"""Run benchmarks and write their rows in ``docs/benchmarks.md``: the figures, the verdicts, the day.

All of them, or those that are named; the rows of others stay. The rows of a script begin with its name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
NOT_BENCHMARKS = frozenset({"processes", "raw_port", "report", "run_all", "untrimmed"})
BEGIN = """# Benchmarks

`make bench` measures and writes this page; each script in `benchmarks/` measures its baseline in the
same run, so read the ratios, not the seconds. `benchmarks/run_all.py NAME…` measures some of them anew.

Machines, named in the last column:

{machines}
| what | value | against | promised | | runs | measured | on |
|---|---|---|---|---|---|---|---|
"""
NOTES = "\n## Notes\n"


def scripts() -> list[str]:
    """Names of all benchmarks."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def run(name: str) -> dict[str, Any] | None:
    """What one script printed, None if it could not measure."""
    print(f"==> {name}", file=sys.stderr, flush=True)
    words = [sys.executable, str(HERE / f"{name}.py"), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=False, cwd=HERE.parent)
    if done.returncode != 0:
        return None
    printed: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return printed


def rows(result: Mapping[str, Any], day: str) -> list[str]:
    return [row(case, day) for case in result.get("cases", [result])]


def row(case: Mapping[str, Any], day: str) -> str:
    verdict = {True: "met", False: "**missed**", None: "reported"}[case["ok"]]
    ratio = "" if case["ratio"] is None else f"{case['ratio']:.2f} × {case['baseline_what']}"
    cells = (case["name"], f"{case['value']:.4g} {case['unit']}", ratio, case["bar"], verdict, case["runs"], day)
    return f"| {' | '.join(map(str, cells))} |"


def letters(table_part: str) -> dict[str, str]:
    """Machines that have rows, and their letters."""
    found = [line.removeprefix("- ").partition(": ") for line in table_part.splitlines() if line.startswith("- ")]
    return {machine: letter for letter, _, machine in found if f"| {letter} |\n" in table_part}


def merged(document: str, machine: str, measured: Mapping[str, Sequence[str]]) -> str:
    """The page with the rows of these scripts, measured on this machine, in place of their old ones; its notes stay."""
    table_part, _, notes = document.partition(NOTES)
    by_name: dict[str, list[str]] = {}
    machines = letters(table_part)
    letter = machines.setdefault(machine, next(free for free in ascii_uppercase if free not in machines.values()))
    for line in table_part.splitlines():
        names = [name for name in scripts() if line.startswith(f"| {name}")]
        if names:
            by_name.setdefault(max(names, key=len), []).append(line)
    by_name.update({name: [f"{line} {letter} |" for line in lines] for name, lines in measured.items()})
    lines = "".join(f"{line}\n" for name in sorted(by_name) for line in by_name[name])
    named = "".join(f"- {name}: {words}\n" for words, name in machines.items() if f"| {name} |\n" in lines)
    begin = BEGIN.format(machines=named)
    return begin + lines + (NOTES + notes if notes else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(scripts())}")
    names = parser.parse_args().names or scripts()
    if unknown := set(names) - set(scripts()):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    day = time.strftime("%Y-%m-%d")
    failed: list[str] = []
    for name in names:
        if (result := run(name)) is None:
            failed.append(name)
            continue
        # Written after each, so that what was measured is kept whatever becomes of the next.
        document = DOCUMENT.read_text() if DOCUMENT.exists() else ""
        machine = result["machine"]
        DOCUMENT.write_text(merged(document, machine, {name: rows(result, day)}))
    if failed:
        print(f"could not measure: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
