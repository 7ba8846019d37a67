"""Processes that are forked, sandboxed, from one parent that has everything imported already.

``parent``    the preloaded parent: a process of its own, without threads, that forks when the daemon asks
``forks``     the daemon's end of it: start it, ask for a process, kill and wait
``messages``  what the two tell each other
``sandbox``   what a forked process goes through before its program runs; ``seccomp`` and ``syscalls`` serve it
``trial``     whether a process gets into its sandbox on this machine
``last_words``  what a process prints, kept for the log
``title``     what such a process is called in a list of processes
"""
