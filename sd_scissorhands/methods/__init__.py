"""The science of unlearning: torch only. It knows a Task and a Selection, no model family, no disk and no terminal.

score -> select -> edit -> repair, each a plain function or class over a dictionary of named parameters. Every file in
scorers/, edits/, objectives/ and retain_losses/ is one, under the file's name; any goes with any other.
"""
