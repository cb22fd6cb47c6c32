"""Gets a stock causal language model and a seed.

Gives the model with few weights to learn, the others frozen, and back: a stock model that computes the same.
May touch the model that it gets: `wrap` and `merge` work in place.
"""
