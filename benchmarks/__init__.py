"""Side-by-side measurements: `python -m benchmarks.NAME [--quick] [--json FILE]` prints a table and writes JSON."""
