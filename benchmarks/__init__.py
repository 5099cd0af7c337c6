"""Longer measurements of benchmark.py, one a file."""
