"""Gets an example with a trusted answer, and what a pupil wrote for its request: training.practice.Sample.

Gives one number in [-1, 1] per sample, the trusted answer the most; what nobody can read never beats what can be read.
May touch nothing; `judge` asks the engine that it is given.
"""
