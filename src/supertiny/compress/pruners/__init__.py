"""Gets one matrix (out, in), what flows into it, or None, and the share of zeros that is wanted.

Gives a copy with exactly that share of zeros; the other weights may be changed to make up for them.
May touch nothing: the matrix stays as it was, and no model is known.
"""
