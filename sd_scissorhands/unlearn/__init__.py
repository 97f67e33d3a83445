"""The science of unlearning: torch only. It knows a Task and a Selection, no model family, no disk and no terminal.

score -> select -> edit -> repair, each a plain function over a dictionary of named parameters.
"""
