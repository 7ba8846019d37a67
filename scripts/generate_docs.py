#!/usr/bin/env python3
"""Write what is generated of docs/ and policy.d/. With --check: write nothing, exit with 1 if a page is out of date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from insula.admin.api import document as methods_page
from insula.admin.default_policy import document as admin_policy
from insula.cli.reference import cli_page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    return {
        DOCS / "cli.md": cli_page(),
        DOCS / "protocols" / "admin-methods.md": methods_page(),
        ROOT / "policy.d" / "90-admin.policy": admin_policy(),
    }


def outdated() -> list[Path]:
    """Pages whose file is missing or differs."""
    return [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    if parser.parse_args().check:
        stale = outdated()
        for path in stale:
            sys.stderr.write(f"{path} is out of date: make docs\n")
        return 1 if stale else 0
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
