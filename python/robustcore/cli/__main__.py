"""``python -m robustcore.cli`` is the ``robustcore`` command."""

from .main import main

main()
