"""Benchmarks of robustcore.merging."""
