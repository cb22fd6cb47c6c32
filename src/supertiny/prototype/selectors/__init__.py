"""Gets prompts and an array (prompts, rows, labels) of label probabilities that a model gave under each prompt.

Gives the order of the prompts, best first, without having seen a single right label.
May touch nothing else.
"""
