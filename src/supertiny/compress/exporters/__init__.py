"""Gets a student's stock Hugging Face folder.

Gives `model.gguf` in another folder, and what it is: its type, its number of weights.
May touch that folder alone.
"""
