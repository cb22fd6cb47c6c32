"""Gets examples with answers and verdicts.

Gives a subset of them, or new or changed ones that carry their origin's id; same seed, same result.
May touch what its `needs` name: the live teacher, scores by a small model, a person's review file. Looks at valid and
test for nothing but to keep rows out that stand there.
"""
