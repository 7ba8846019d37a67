"""Give a program in a disposable a folder to work on and take its results, with asyncio."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import insula

WORDS = "the quick brown fox jumps over the lazy dog\n" * 100


async def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "input").mkdir()
        (folder / "input" / "words.txt").write_text(WORDS)
        async with insula.disposable("debian-12") as qube:
            await qube.copy_in(folder / "input", "job")
            try:
                await qube.run(
                    ["sh", "-c", "mkdir results && tr ' ' '\\n' < job/words.txt | sort | uniq -c > results/counts"],
                    timeout=60,
                    check=True,
                )
                # Whatever the qube makes of it: at most 1 MB, 10 files, and only inside the new folder.
                await qube.copy_out("results", folder / "results", limit=1_000_000, max_entries=10)
            except insula.ClientError as error:
                print(f"failed: {error}", file=sys.stderr)
                return 1
        counts = (folder / "results" / "counts").read_text(errors="backslashreplace")
        print(len(counts.splitlines()), "different words")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
