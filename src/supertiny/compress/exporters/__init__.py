"""Gets a student's stock Hugging Face folder.

Gives `model.gguf`, or a folder around `model.safetensors`, and what it is: its type, its number of weights.
May touch that folder alone.
"""
