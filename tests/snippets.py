"""The Python blocks of the pages of ``captioner/docs``, for the tests to run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent.parent / "captioner" / "docs"


def of(page: str) -> dict[str, str]:
    """The page's Python blocks by the heading that each stands under."""
    found = {}
    for section in re.split(r"^#+ ", (PAGES / page).read_text(), flags=re.MULTILINE)[1:]:
        for block in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            heading = section.partition("\n")[0]
            assert heading not in found, f"{page}: two blocks under {heading}"
            found[heading] = block
    return found


def run(code: str, places: dict[str, Path]) -> dict[str, Any]:
    """Run a block with other paths than those that it names; what it has assigned."""
    for name, path in places.items():
        code = code.replace(name, str(path))
    names: dict[str, Any] = {}
    exec(code, names)
    return names
