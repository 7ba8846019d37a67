"""Start of :mod:`insula_agent.net.firewall`, run by path with ``python3 -I -S``: makes our packages importable."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__ + "/../../.."))
    from insula_agent.net.firewall import main

    sys.exit(main(sys.argv[1:]))
