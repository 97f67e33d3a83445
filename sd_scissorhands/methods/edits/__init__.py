"""What is done to the selected weights: one file an edit, under the name that --edit takes.

An edit says what data it NEEDS and gives `edit(task, parameters, selection, options)`, which changes selected weights in
place; all others stay bit-identical, and nothing selected is the identity.
"""
