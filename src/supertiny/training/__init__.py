"""Gets a student and lessons (token sequences with the part that is learned).

Gives the student back, better, and a record of each step.
May touch the student's weights and a checkpoint folder; knows no task, no stage.
"""
