"""``python3 -S -E -m insula_agent``."""

import sys

from insula_agent.main import main

sys.exit(main(sys.argv[1:]))
