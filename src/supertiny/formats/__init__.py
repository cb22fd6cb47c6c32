"""Formats: how a request is put to a small model and how its words become calls.

Gets a Request and Tools, gives a Prompt; gets the model's text, gives an Answer. May touch nothing but its arguments:
training and serving use the same object, so that they cannot drift apart.
"""
