"""Gets: the task's test rows and everything that answers them, opened one at a time; the run's other folders.
Gives: report.html, report.json, report.md and rows.jsonl: what was bought, and at what price.
May touch: core. Only this room opens `test`."""
