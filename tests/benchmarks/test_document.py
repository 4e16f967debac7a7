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


def test_the_rate_is_the_depth_over_the_latency() -> None:
    assert document.rate({"p50_us": 16.0}, 32) == 2000  # thousand: 32 in 16 us
