"""General utilities: files, locks, limits, progress and processes."""
