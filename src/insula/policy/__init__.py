"""Policy: which qube may call which service of which other qube. Pure, but for the one module that reads folders.

A policy is text in files, in the published 5.0 syntax (qrexec §6). The way of a question through this room::

    folders, disk    where files come from: memory, a folder on disk
    syntax           one line → a rule or a directive; both syntaxes; knows words, not files
    tokens, rules    the words of a rule, the rule, and the text of either
    loader           files in their order, includes, limits → Policy
    ruleset          Policy: rules, or the problems that make it deny everything
    snapshot         what rules may ask about qubes, one frozen value…
    system_facts     …and how it is made from the model's System
    decisions        Request, Allow, Ask, Deny
    engine           evaluate, explain, answer: (Request, Policy, Snapshot) → decision
    store            reading and changing policy files, with the published version tokens
    evaluate         the command: JSON lines in, JSON lines out

Doubt means no: a policy with any problem has no rules, and every path of the engine that finds nothing denies.
"""
