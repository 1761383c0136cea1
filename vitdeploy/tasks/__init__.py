"""What a network does, and so what a bundle of it may lose: one module a task, all of the same parts.

`Task` opens what is true of DATA's images and makes a small row of each image's outputs; `Answers` are the figures of a
run, computed from its rows; `Comparison` holds them against the baseline's, with the drop that a gate judges.
"""
