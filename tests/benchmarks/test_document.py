"""docs/performance.md says what the numbers beside it say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import document

NUMBERS = document.ROOT / "docs" / "performance.json"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write to; no plots."""
    copy = tmp_path / "performance.md"
    copy.write_text(document.PAGE.read_text())
    monkeypatch.setattr(document, "PAGE", copy)
    monkeypatch.setattr(document, "plot", lambda cases: None)
    return copy


def test_the_page_is_up_to_date(page: Path) -> None:
    """Otherwise: scripts/bench.sh --document docs/performance.json"""
    before = page.read_text()
    document.update([NUMBERS])
    assert page.read_text() == before


def test_other_numbers_change_it(page: Path, tmp_path: Path) -> None:
    found = json.loads(NUMBERS.read_text())
    found["rss_mib"] = 64.0
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(found))
    document.update([changed])
    assert "| `rss_mib` | < 64 | 64.0 | **not met** |" in page.read_text()


def test_a_page_without_its_places_is_refused(page: Path) -> None:
    page.write_text(page.read_text().replace("<!-- end of idle -->", ""))
    with pytest.raises(ValueError, match="idle"):
        document.update([NUMBERS])


def test_rates_are_those_that_were_counted(page: Path) -> None:
    """Not what would follow from the median latency."""
    floor = json.loads(NUMBERS.read_text())["depths"]["floor qd1"]
    assert f"| 1 | {floor['iops'] / 1000:.0f} / {floor['p50_us']:.1f} / {floor['p99_us']:.1f} |" in page.read_text()


def test_what_newer_runs_say_is_shown_where_it_is_there(page: Path, tmp_path: Path) -> None:
    """What became of rounds, and marks that older runs had not."""
    counts = {"kept": 10, "dropped": 3, "disturbed": 2}
    found = json.loads(NUMBERS.read_text())
    found |= {"idle_cpu_percent_mapped": 1.5, "quick": {"a": counts, "b": counts}, "guest_rounds": counts}
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(found))
    document.update([changed])
    text = page.read_text()
    assert "| `idle_cpu_percent_mapped` | < 1 | 1.5 | **not met** |" in text
    assert "\nRounds: 20 kept (4 of them disturbed), 6 dropped.\n<!-- end of marks -->" in text
    assert "\nRounds: 10 kept (2 of them disturbed), 3 dropped. The guest's CPU waited " in text
