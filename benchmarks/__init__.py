"""Benchmarks and their command line ``hmer-bench``."""
