"""Gets one matrix (out, in) and what flows into it, or None.

Gives it in few bits, as compress/packed.py lays them out.
May touch nothing: the matrix stays as it was, and no model is known.
"""
