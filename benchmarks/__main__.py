"""``python -m benchmarks`` is ``robustcore bench``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from robustcore.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench"]
    main()
