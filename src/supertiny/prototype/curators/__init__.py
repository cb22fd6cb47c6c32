"""Gets examples with answers and verdicts.

Gives a subset of them, or new ones that carry their origin's id; same seed, same result.
May touch nothing else; looks at valid and test for nothing but to make no row that stands there.
"""
