"""What an encoder makes of rows with pixels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from captioner import features, parquet_dir
from captioner.encoder import Encoder
from jobs.extract import EncodeImages
from tests.runs import build_run


class Overflows:
    """An encoder whose first image is no number any more."""

    def __init__(self, encoder: Encoder) -> None:
        self.identity, self._encoder = encoder.identity, encoder

    def encode(self, pixels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        embedding, tokens = self._encoder.encode(pixels)
        assert tokens is not None
        tokens = tokens.clone()
        tokens[:1, 3, 5] = torch.inf
        return embedding, tokens


def test_an_image_whose_features_are_no_numbers_is_a_row_with_that_reason(tmp_path: Path) -> None:
    config = build_run(tmp_path / "run")
    encoder = Encoder(config.encoder)
    target = encoder.identity.preprocessing
    schema = features.schema(encoder.identity)
    found = parquet_dir.read(config.at("features")).slice(0, 4)  # of which the third has failed
    pixels = np.arange(4, dtype=np.uint8).repeat(target.height * target.width * 3).reshape(4, -1)
    column = pa.array(
        [
            None if error else pixels[n].tobytes()
            for n, error in enumerate(found["error"].to_pylist())
        ],
        pa.binary(pixels.shape[1]),
    )
    actor: Any = object.__new__(EncodeImages)
    actor._encoder, actor._schema = Overflows(encoder), schema
    told: list[Any] = []
    actor._reporter = SimpleNamespace(add=lambda rows, errors, began: told.append((rows, errors)))
    rows = actor(found.drop_columns(["embedding", "tokens"]).append_column("pixels", column))
    assert rows.schema == schema
    assert rows["error"].to_pylist() == [features.NO_NUMBERS, None, *found["error"].to_pylist()[2:]]
    for name in ("embedding", "tokens"):
        assert rows[name].is_valid().to_pylist() == [False, True, False, True]
        given = features.to_numpy(rows[name].filter(rows["error"].is_null()))
        place = ("embedding", "tokens").index(name)
        expected = encoder.encode(pixels.reshape(4, target.height, target.width, 3)[[1, 3]])[place]
        assert expected is not None
        assert np.allclose(given, expected, atol=1e-2)
    assert told == [(4, {features.NO_NUMBERS: 1, "OSError": 1})]
