"""Settings of firefly growth that search little, for tests of what is around it."""

from __future__ import annotations

SMALL_SEARCH = {"news": 4, "copies": 4, "steps": 2, "score_batches": 1, "halvings": 2}
"""As a plan has them."""

SMALL_OPTIONS = {f"settings.{name}": str(value) for name, value in SMALL_SEARCH.items()}
"""As the options of a cell have them."""
