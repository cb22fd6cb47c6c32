"""Finds the pipeline that serves a task best, on rows of valid, for a price that is known and bounded.

`space` says what is tried, `halving` how few calls that takes, `wordings` ranks texts without labels, `outcome` says
what was found, `recipe_file` writes it down. Everything that a model is asked goes through the run's ledger.
"""
