"""What a plugin author subclasses and a strategy is handed; depends on torch and numpy alone."""
