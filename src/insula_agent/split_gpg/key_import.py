"""``qubes.GpgImportKey``: a key of another qube for the key ring of this one, if whoever sits here says yes."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import consent, programs
from insula_agent.split_gpg.options import ENVELOPE

GPG = "gpg"
USE = "gpg-import"


def main() -> int:
    try:
        source = consent.check_source(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        question = f"Do you allow the qube {source} to add a key to your GPG key ring, this once?"
        # A yes to using keys is none to adding one, and each key is asked for.
        if not consent.ask_or_remember(USE, source, question, 0, os.environ):
            sys.stderr.write("not allowed\n")
            return 1
        programs.become([GPG, *ENVELOPE, "--import"])
    except (ValueError, consent.NobodyToAsk, OSError) as error:
        sys.stderr.write(f"split GPG: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
