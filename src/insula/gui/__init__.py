"""Windows of qubes on the host's desktop.

Everything that decides is pure: messages of the guest and events of the desktop go in, commands come out.

``geometry``      rectangles, the frame around a window, where windows may lie
``titles``        what is shown of a title a guest chose
``tint``          icons of guests in the colour of their qube
``cover``         what of others' windows no popup may cover
``damage``        what has changed in a picture, in few rectangles
``desktop``       what happens on the desktop, and what it is told to do
``windows``       the windows of one qube: what each is, what may be shown, and what the guest is told of it
``keyboard``      input on its way to the qube: to the window with focus, and nothing that was pressed elsewhere
``clipboard``     the two keys that move text, in the qube's process and between qubes
``machine``       these joined, for one qube

``rfb``           the screen of a machine without agent, as its monitor tells it
``emulated``      that screen as one window

What does: ``frame_memory`` maps the pixels, ``session`` joins a guest's channel, its machine and a back end,
``backend`` shows windows, ``process`` is the program of one qube.

The daemon's part: ``spawn`` starts such a process in its sandbox, ``control`` is what the two tell each other,
``clip_file`` what is copied, ``launcher`` owns all of them and the board.
"""
