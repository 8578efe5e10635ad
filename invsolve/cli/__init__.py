"""The command line: one verb a job. Nothing heavy is imported before a command needs it."""
