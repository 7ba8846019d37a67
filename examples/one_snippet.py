"""Run a piece of Python that nobody should trust, in a machine that is gone afterwards. No asyncio needed."""

from __future__ import annotations

import sys

import insula

CODE = """
import os, platform
print("hello from", platform.node(), "as", os.environ.get("USER", "user"))
"""


def main() -> int:
    with insula.sync.disposable("debian-12", timeout=60, cpu_time=20) as qube:
        result = qube.run(["python3", "-c", CODE], timeout=30, output_limit=1_000_000)
    print(ascii(result.text))  # what a machine says may try to steer the terminal
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
