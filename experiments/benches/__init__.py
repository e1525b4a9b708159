"""The suites of bench.py: a module a suite, with `run(settings)` and `show(result)`."""
