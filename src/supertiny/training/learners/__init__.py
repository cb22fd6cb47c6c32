"""Gets a pupil (a loaded student) and lessons.

Gives a record per step; the stage logs, saves and stops it.
May touch the pupil's weights and its checkpoint file.
"""
