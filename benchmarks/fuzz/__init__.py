"""Damaged files and texts for everything that reads them; ``python -m benchmarks.fuzz --help``."""
