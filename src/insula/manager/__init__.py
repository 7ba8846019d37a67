"""What the person at the desktop sees of Insula itself. The room of Qt on the host.

So far the *prompt*: the program that asks whether a call may go on (qrexec §7, "Policy agent").

``program``       its entry point: which back end, one program at a time
``agent_server``  the socket: requests in, answers out; a caller that hangs up takes its question along
``prompt``        what is asked, in which order, and when an answer counts; pure
``notices``       which notices are shown, and what becomes of a flood of them; pure
``notifications`` which notifications of programs in qubes are shown, and when; pure
``wording``       what a service does, in words; pure
``host_mark``     the mark that no qube knows
``terminal``      back end: a terminal
``qt_prompt``     back end: windows; with ``qt_dialog``, ``qt_notices``, ``qt_colours`` all that loads Qt
``menu``          applications of qubes in the desktop's own menu
``launcher``      which application a few letters mean; pure. ``qt_launcher`` shows it
``screenshot``    pictures of the screen: what is in one; pure. ``qt_screenshot`` takes them
``autostart``     how the program starts with the desktop
"""
