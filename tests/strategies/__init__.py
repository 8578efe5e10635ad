"""Strategies against transcriptions, closed forms and the exact posterior."""
