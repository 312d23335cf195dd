from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.config import Encoder as EncoderOptions
from captioner.config import Image as Limits
from captioner.config import Source
from captioner.encoder import Encoder
from captioner.images import decode
from captioner.loop import encode_source

TINY_VIT = Path(__file__).parent.parent.parent / "configs" / "tiny-vit"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    options = {"model": f"local-dir:{TINY_VIT}", "pretrained": "none", "precision": "float32"}
    return Encoder(EncoderOptions.model_validate(options))


def test_a_directory_is_encoded_without_ray(encoder: Encoder, tmp_path: Path) -> None:
    for number in range(7):
        Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("no picture")
    source = Source(images=str(tmp_path))
    batches = list(encode_source(source, encoder, batch_size=3, threads=2))
    assert [len(batch.image_ids) for batch in batches] == [3, 3, 1]
    seen = set()
    for batch in batches:
        found = iter(zip(batch.embedding, batch.tokens if batch.tokens is not None else []))
        for name, error in zip(batch.image_ids, batch.errors):
            seen.add(name)
            assert (error == "not an image") == (name == "3.png")
            if error is None:
                data = (tmp_path / name).read_bytes()
                pixels = decode(data, encoder.identity.preprocessing, 10**6).pixels
                assert pixels is not None
                alone, tokens = encoder.encode(pixels[None])
                embedding, of_image = next(found)
                assert tokens is not None
                assert np.allclose(embedding.float(), alone[0].float(), atol=2e-3)
                assert np.allclose(of_image.float(), tokens[0].float(), atol=2e-2)
        assert next(found, None) is None
    assert seen == {f"{number}.png" for number in range(7)}


def test_limits_hold_without_ray_too(encoder: Encoder, tmp_path: Path) -> None:
    Image.effect_noise((50, 40), 90).save(tmp_path / "large.png")
    source = Source(images=str(tmp_path))
    (batch,) = encode_source(source, encoder, 4, 1, Limits(max_pixels=100))
    assert batch.errors[0] is not None
    assert "image.max_pixels" in batch.errors[0]
    assert len(batch.embedding) == 0


def test_an_empty_source_gives_nothing(encoder: Encoder, tmp_path: Path) -> None:
    assert list(encode_source(Source(images=str(tmp_path)), encoder, 4, 1)) == []
