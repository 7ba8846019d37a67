"""The host's published executables that speak qrexec over unix-socket vchan: ``qrexec-daemon``, ``qrexec-client``,
``qrexec-policy-daemon``, ``qrexec-policy-exec``.

Qubes that Insula runs do not need them: there :mod:`insula.rpc` does this work over the channel of a machine. These are
for qubes that somebody else runs, and so that other people's tests of the protocol run on our code. Codecs, state
machines of the channels, and the rules for services are those of :mod:`insula_proto`; decisions are those of
:mod:`insula.policy`.

::

    switchboard   what a daemon does, without I/O: events in, commands out
    exchange      the switchboard's sockets and processes
    daemon        qrexec-daemon: an exchange in the background
    errand        one request of a qube, in a process of its own: policy, target, the host's own services
    client        qrexec-client
    policy_daemon, policy_exec   the two that answer questions about policy
    verdicts      what policy says, where nobody need be asked
    judge         …and where the user is asked or told

    places        names and folders, and what overrides them
    sockets       vchans and connections to daemons
    relay         a data channel joined to descriptors, either end
    descriptors   these: what is read, what is written and what waits to be
    host_service  a service or command of the host, as a process or a socket
    question      asking policy from a daemon's end
    policy_protocol   questions and answers on the wire
    qubesd        starting and ending qubes through the Admin API
    log           lines for people, not more a second than they can read

Modules import nothing large: each executable is ready within 0.3 s of its start.
"""
