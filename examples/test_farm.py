"""A small test farm: N snippets, each in a machine of its own, a few machines at a time.

    python examples/test_farm.py [AT_ONCE]

Every snippet starts from the same clean system, and none can disturb another: one of these fills its memory, one loops
for ever, one asks for a network, one powers its machine off.
"""

from __future__ import annotations

import asyncio
import sys

import insula

SNIPPETS = {
    "sum": "print(sum(range(1000)))",
    "fails": "raise SystemExit(3)",
    "loops": "while True: pass",
    "memory": "x = bytearray(1 << 40)",
    "network": "import socket; socket.create_connection(('192.0.2.1', 80), 5)",
    "leaves something": "open('/home/user/leftover', 'w').write('x')",
    "finds something": "import os; print(os.path.exists('/home/user/leftover'))",
    "powers off": "import os, time; os.system('systemctl poweroff'); time.sleep(60)",
}
SECONDS = 20
"""What one snippet may take."""


async def verdict(code: str) -> str:
    try:
        async with insula.disposable("debian-12", timeout=120) as qube:
            result = await qube.run(["python3", "-c", code], user="root", timeout=SECONDS, output_limit=100_000)
    except insula.CommandTimedOut:
        return f"took more than {SECONDS} s"
    except insula.OutputTooLong:
        return "wrote too much"
    except insula.QubeEnded as error:
        return f"its machine ended: {error.reason}"
    return f"exit code {result.exit_code}: {(result.stdout or result.stderr)[-60:].decode(errors='replace')!a}"


async def main(at_once: int) -> None:
    places = asyncio.Semaphore(at_once)

    async def one(name: str, code: str) -> None:
        async with places:
            print(f"{name}: {await verdict(code)}", flush=True)

    async with asyncio.TaskGroup() as group:
        for name, code in SNIPPETS.items():
            group.create_task(one(name, code))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2))
