"""The report, and its page in a real browser."""
