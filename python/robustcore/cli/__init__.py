"""The ``robustcore`` command: one module per command; errors and exit codes in :mod:`.main`."""
