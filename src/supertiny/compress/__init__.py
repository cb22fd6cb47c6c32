"""Gets the student of the transfer stage.

Gives a smaller student and its artifact, one GGUF file that answers as the student does; fails where it does not.
May touch its own folder; measures on valid, never sees test.
"""
