"""The command line: one verb per job. Nothing heavy is imported before a command needs it."""
