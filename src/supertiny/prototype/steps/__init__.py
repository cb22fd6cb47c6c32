"""Gets traces (requests on their way) and a bench (engine, task, format, nearest examples).

Gives the traces, one step further, in order.
May touch: the task's own functions (`execute`); every model call goes through the bench, and so the ledger.
A task brings steps of its own along as files in its folder `steps/`, written by the same rule.
"""
