"""Gets prompts, gives completions and scores: everything that runs a language model.

May touch: the model file that it opens, and for `openai` the network; it writes nothing.
"""
