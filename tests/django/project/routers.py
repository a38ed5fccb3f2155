"""A router that lets backfills into one database only."""

import os
from typing import Any


class OnlyOne:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == os.environ["SHOP_ONLY"] if hints.get("backfill") else None
