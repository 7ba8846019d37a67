"""The way out: what joins the last net qube to this host's network (decision 020).

``cable``      frames on the socket between two machines, as QEMU writes them
``screen``     which of a guest's frames may go on to the outside
``resolver``   which name server this host asks
``slirp``      libslirp, bound
``uplink``     the process: a cable on one side, ordinary sockets on the other
``heartbeat``  how others see that it does not hang
"""
