"""Forward operators, one physical system a file; found through the registry, never by import."""
