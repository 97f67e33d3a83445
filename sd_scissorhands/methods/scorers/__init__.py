"""How much each weight matters to what is to be forgotten: one file a scorer, under the name that --scorer takes.

A scorer says what data it NEEDS ("forget", "retain", "pairs", "unseen"; it is refused any other), how many PASSES of losses
a draw takes, and gives `score(task, parameters, options)`: name -> float32 scores, shaped as the parameter. A scorer of units
(rows of a weight, with their number of the bias) gives every weight of a row the row's score.
"""
