"""Benchmarks of robustcore.losses."""
