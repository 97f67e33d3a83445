"""The science of unlearning: torch only. It knows a Task and a Selection, no model family, no disk and no terminal.

score -> select -> edit -> repair, each a plain function over a dictionary of named parameters. Every file in scorers/ is a
scorer and every file in edits/ an edit, under the file's name; any scorer goes with any edit and any repair.
"""
