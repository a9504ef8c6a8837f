"""A run's model in a form for others: one file a format, all listed in formats.py."""
