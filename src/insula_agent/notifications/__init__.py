"""The notification service of this qube's desktop session: what programs tell the user goes to the host, as text.

``wire``     messages of D-Bus as bytes; no I/O
``bus``      a connection to the session's bus
``service``  what programs call (``org.freedesktop.Notifications``), and what becomes of it; no I/O
``server``   the program, which the bus starts when somebody calls
"""
