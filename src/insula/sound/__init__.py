"""Sound of qubes at the host: each stream has a process of its own between the qube and the user's sound server."""
