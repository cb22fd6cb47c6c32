"""Gets the artifact of a run and the task's tools.

Gives an endpoint that speaks OpenAI's chat protocol, `ask` for the command line, and serve.json, which both read.
May touch its own folder of the run and one TCP port; never the recipe, the ledger or the task folder.
"""
