"""Check that docs/settings.md matches the descriptions of the settings."""

from __future__ import annotations

from pathlib import Path

from metarepair.config.run import Config
from metarepair.console.settings_page import settings_page

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_in_docs_is_up_to_date() -> None:
    remedy = "run: python -m metarepair.console.settings_page > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == settings_page(), remedy


def test_every_setting_has_a_row_with_type_default_and_description() -> None:
    page = settings_page()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows if len(row) < 4] == []
    keys = {row[0].strip("`").partition(".")[0] for row in rows}
    assert keys == {*Config.model_fields}
    assert "| `train.order` | `second`, `first`, `reptile` | `'second'` | " in page
    assert "| `mining.experiences` | list of: text | required | " in page
    assert "| `search.space.KEY.uniform` | list of 2: number or none | none | " in page
    assert "| `methods.archrepair.search.alpha_rate` | number > 0 and ≤ 10 | `0.0003` | " in page
