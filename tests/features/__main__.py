"""Writes the page of the table of features: ``python -m tests.features``."""

from tests.features.table import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
