"""Benchmarks of robustcore.pcr."""
