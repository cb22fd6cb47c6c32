"""Gets a student's model and calibration batches (train rows; `wanted` marks the answers' places).

Gives a model that is smaller, or equal and easier to quantize, and still stock.
May touch the model that it was given, in place.
"""
