"""Operators against independent implementations and closed forms."""
