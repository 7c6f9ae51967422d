"""Progress of commands that move bytes, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from robustcore.cli import output


def test_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    monkeypatch.setattr(output, "error_console", lambda: console)
    with output.byte_progress(4.0) as report:
        report("statistics", 0, 1000_000)
        report("statistics", 1000_000, 1000_000)
        report("merging", 500_000, 1000_000)  # another walk begins
    drawn = text.getvalue()
    assert "merging" in drawn
    assert "2.0/4.0 MB" in drawn


def test_lines_now_and_then_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    with output.byte_progress(4.0) as report:
        for step in range(1, 31):
            now[0] = float(step)
            report("merging", step << 20, 40 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "merging: 25 %, 4.0 MiB/s, 30 s left",
        "merging: 50 %, 4.0 MiB/s, 20 s left",
        "merging: 75 %, 4.0 MiB/s, 10 s left",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 41, "2.0 TiB")]
)
def test_bytes_with_units(count: int, text: str) -> None:
    assert output.human_bytes(count) == text
