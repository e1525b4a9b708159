"""The suites of the job `bench`, each a module with `run(settings)` and `show`."""
