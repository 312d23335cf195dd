"""Captioner's library: images to CLIP features, features to captions, captions to scores.

Nothing in here imports ray or click; the distributed jobs live in ``jobs``.

    from captioner import Captioner

    captioner = Captioner.load("runs/mine/model")
    print(captioner.caption("photo.jpg").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.one_by_one import Captioner

__version__ = "0.1.0"
__all__ = ["Captioner", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: torch takes seconds, and decoding tasks do without it.
    if name != "Captioner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from captioner.one_by_one import Captioner

    return Captioner
