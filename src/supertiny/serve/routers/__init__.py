"""Gets a request and the artifact's draft answer.

Gives how doubtful the draft is, 0..1; the threshold above which a stronger answerer is asked lives in the recipe.
May touch nothing else.
"""
