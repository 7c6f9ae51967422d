"""Tasks, training, merging and reporting of ``examples/merge_tasks.py``."""
