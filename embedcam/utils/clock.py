"""The time of creation that files record."""

from __future__ import annotations

import os
from datetime import datetime, timezone


def now() -> str:
    """Return the current time, or that of SOURCE_DATE_EPOCH for reproducible builds.

    Returns:
        UTC, ISO 8601.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    return moment.isoformat(timespec="seconds")
