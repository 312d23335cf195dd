from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from captioner.config import Encoder as Options
from captioner.encoder import Encoder
from captioner.errors import InputError
from captioner.text import TextEncoder

TEXTS = ["A photo depicts a dog", "A photo depicts two cats on a sofa", "", "a " * 100]


@pytest.fixture
def tower(tmp_path: Path) -> Callable[..., str]:
    """Writes a tiny CLIP in open_clip's format and names it."""

    def write(**text: Any) -> str:
        config = {
            "embed_dim": 24,
            "vision_cfg": {
                "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8,
            },
            "text_cfg": {
                "context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2,
                **text,
            },
        }  # fmt: skip
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        return f"local-dir:{tmp_path}"

    return write


def trained(model: str) -> Any:
    """Weights in its directory that look as if it had learned something; and open_clip's model."""
    torch.manual_seed(1)
    own = open_clip.create_model(model, load_weights=False)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    path = f"{model.removeprefix('local-dir:')}/open_clip_model.safetensors"
    safetensors.torch.save_file(own.state_dict(), path)
    return own.eval()


@torch.inference_mode()
def test_the_embedding_is_open_clips_own(tower: Callable[..., str]) -> None:
    model = tower()
    own = trained(model)
    expected = own.encode_text(open_clip.get_tokenizer(model)(TEXTS)).numpy()
    found = TextEncoder(Options(model=model)).encode(TEXTS)
    assert (found.shape, found.dtype) == ((4, 24), np.float32)
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_it_belongs_to_the_image_tower_of_the_same_model(tower: Callable[..., str]) -> None:
    options = Options(model=tower(), pretrained="none")
    belongs_to = TextEncoder(options).image_weights_sha256
    assert belongs_to == Encoder(options).identity.weights_sha256
    other = options.model_copy(update={"seed": 1})
    assert TextEncoder(other).image_weights_sha256 != belongs_to


def test_a_text_side_that_was_never_trained_is_refused(tower: Callable[..., str]) -> None:
    """As of an ImageNet network in open_clip's format."""
    model = tower()
    own = trained(model)
    untrained = open_clip.create_model(model, load_weights=False)
    weights = untrained.state_dict() | {
        name: value for name, value in own.state_dict().items() if name.startswith("visual")
    }
    path = f"{model.removeprefix('local-dir:')}/open_clip_model.safetensors"
    safetensors.torch.save_file(weights, path)
    with pytest.raises(InputError, match=r"clip_score: the text side of .* was never trained"):
        TextEncoder(Options(model=model))
    TextEncoder(Options(model=model, pretrained="none"))  # random on purpose, and says so


def test_a_text_side_of_few_words_is_refused(tower: Callable[..., str]) -> None:
    options = Options(model=tower(vocab_size=64), pretrained="none")
    with pytest.raises(InputError, match=r"knows fewer words \(text_cfg\.vocab_size\)"):
        TextEncoder(options)


def test_a_model_without_a_tokenizer_is_refused(tower: Callable[..., str]) -> None:
    model = tower(hf_tokenizer_name="nowhere")
    with pytest.raises(InputError, match=f"no tokenizer for {model}"):
        TextEncoder(Options(model=model, pretrained="none"))
