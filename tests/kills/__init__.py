"""Processes that are really killed."""
