"""Which image tower made some features. Apart from the tower itself, so that who only reads
features need not import open_clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from captioner import __version__
from captioner.images import Preprocessing

METADATA_KEY = b"captioner.encoder"  # of feature and caption shards
RANDOM_WEIGHTS = (
    "WARNING: the encoder has RANDOM WEIGHTS (encoder.pretrained: none). "
    "What it makes shows that the jobs work, not how good they are."
)


@dataclass(frozen=True)
class EncoderIdentity:
    """Which tower made some features. Features of two towers must never meet in one model."""

    model: str
    pretrained: str  # "none": seeded random weights
    preprocessing: Preprocessing
    weights_sha256: str = ""  # empty: not known
    quick_gelu: bool = False
    embedding_size: int = 0
    patches: int = 0  # no tokens were asked for
    channels: int = 0
    library: str = ""  # that ran it, with its version

    @property
    def has_real_weights(self) -> bool:
        return self.pretrained != "none"

    @property
    def is_known(self) -> bool:
        """Not of captions that somebody else has made, in a file."""
        return bool(self.weights_sha256)

    @property
    def name(self) -> str:
        """The model's name; of a ``local-dir:`` model the directory's name, without its path."""
        path = self.model.removeprefix("local-dir:")
        return self.model if path == self.model else path.rstrip("/").rpartition("/")[2]

    @property
    def bytes_per_image(self) -> int:
        """Of float16 features, before compression."""
        return 2 * (self.embedding_size + self.patches * self.channels)

    def describe(self) -> str:
        """One line for people, with a warning where the weights are random."""
        if not self.is_known:
            return self.model
        weights = (
            f"weights {self.pretrained}" if self.has_real_weights else "RANDOM WEIGHTS (untrained)"
        )
        tokens = f", {self.patches} tokens of {self.channels}" if self.patches else ""
        embedding = f", embedding {self.embedding_size}" if self.embedding_size else ""
        return f"{self.name}, {weights}{embedding}{tokens}"

    def difference(self, other: EncoderIdentity) -> str | None:
        """Why features of ``other`` do not fit a model made with this encoder; None: they do."""
        mine, theirs = asdict(self), asdict(other)
        for key in ("weights_sha256", "quick_gelu", "preprocessing", "patches", "channels"):
            if mine[key] != theirs[key]:
                return f"{key}: {mine[key]} against {theirs[key]}"
        return None

    def metadata(self) -> dict[bytes, str]:
        """What the files of features and captions made with this tower carry about it."""
        return {METADATA_KEY: json.dumps(self.to_dict()), b"captioner.version": __version__}

    @classmethod
    def of_metadata(cls, metadata: Mapping[bytes, str | bytes]) -> EncoderIdentity:
        return cls.from_dict(json.loads(metadata[METADATA_KEY]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderIdentity:
        picture = dict(values["preprocessing"])
        picture["mean"], picture["std"] = tuple(picture["mean"]), tuple(picture["std"])
        # What another version of captioner knew beside these changes no features.
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{**known, "preprocessing": Preprocessing(**picture)})
