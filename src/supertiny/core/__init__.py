"""Gets nothing but files and plain values.

Gives the nouns, the sockets, the recipe, the run folder, the ledger and the scores that all rooms share.
May touch the run folder and the model store; imports nothing else of ours and never torch.
"""
