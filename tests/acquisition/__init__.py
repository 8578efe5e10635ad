"""Active acquisition: policies, sessions, the command."""
