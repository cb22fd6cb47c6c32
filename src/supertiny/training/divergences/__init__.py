"""Gets natural-log probabilities of teacher and student, both (positions, support), on one support.

Gives one number >= 0 per position, 0 where both agree.
May touch nothing: masks, temperature, chunks and top-k are handled in training/align.py.
"""
