"""Captioner's library: images to CLIP features, features to captions, captions to scores.

Nothing in here imports ray or click; the distributed jobs live in ``jobs``.
"""

__version__ = "0.1.0"
