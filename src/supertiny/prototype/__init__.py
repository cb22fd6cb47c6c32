"""Gets a task and a language model.

Gives the teacher pipeline, measured, and the examples that it labelled and the verifier passed.
May touch the ledger and its own folder; reads the splits labelled, unlabelled and valid; test to make no row of it.
"""
