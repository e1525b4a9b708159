"""The command line: `mixdef JOB --flag=...`, one module per job."""
