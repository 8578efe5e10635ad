"""Jobs that write files, in one process and in many."""
