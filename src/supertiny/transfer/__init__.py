"""Gets the examples that the prototype stage kept, and a small language model.

Gives a student: a stock Hugging Face folder that answers the task's requests without being shown its functions.
May touch its own folder; stops early by `valid`, never sees test.
"""
