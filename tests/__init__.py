"""Tests: one folder a promise; `support` holds what they share."""
