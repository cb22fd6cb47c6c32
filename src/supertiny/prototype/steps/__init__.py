"""Gets traces (requests on their way) and a bench (engine, task, format, nearest examples).

Gives the traces, one step further, in order.
May touch nothing else; every model call goes through the bench, and so through the ledger.
"""
