"""Windows of a qube's programs, on their way to the host.

``pictures``   places in the frame memory; pure
``display``    the X server, as far as it is used
``icons``      which of a program's icons is told
``keyboard``   laid out as the host's
``monitors``   the host's screens
``selection``  the clipboard of the X server
``windows``    what the X server's windows are, told to the host, and what the host says, done to them
``main``       the program: ``python3 -m insula_agent.gui.main``
"""
