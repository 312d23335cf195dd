"""Tiny captioners with random weights, as their libraries save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

WORDS = [
    "a",
    "dog",
    "cat",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "on",
    "the",
    "grass",
    "runs",
    "sits",
    "two",
    "men",
]
SIDE = 32
_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SEEN = {"image_size": SIDE, "patch_size": 16, "intermediate_size": 32}


def save(kind: str, directory: Path) -> Path:
    """A captioner of this kind: blip, git, vit-gpt2 or coca."""
    directory.mkdir(parents=True)
    torch.manual_seed(0)
    {"blip": _blip, "git": _git, "vit-gpt2": _vit_gpt2, "coca": _coca}[kind](directory)
    return directory


def _tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words = Tokenizer(WordLevel({w: n for n, w in enumerate([*special, *WORDS])}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), special))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="[CLS]", eos_token="[SEP]", **names
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def _ids(size: int) -> dict[str, int]:
    return {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _spread(model: Any) -> None:
    """As they are drawn, weights make all words alike likely whatever is in the image: there would
    be nothing to test."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0.0, 0.4)


def _blip(directory: Path) -> None:
    size = len(_tokenizer(directory))
    text = {**_BERT, **_ids(size), "sep_token_id": 2, "intermediate_size": 32}
    text |= {"max_position_embeddings": 64, "encoder_hidden_size": 16, "projection_dim": 8}
    config = BlipConfig(
        text_config=text, vision_config={**_BERT, **_SEEN, "projection_dim": 8}, projection_dim=8
    )
    model = BlipForConditionalGeneration(config)
    _spread(model)
    model.save_pretrained(directory)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(directory)


def _git(directory: Path) -> None:
    size = len(_tokenizer(directory))
    config = GitConfig(
        vision_config={**_BERT, **_SEEN},
        **_BERT,
        **_ids(size),
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = GitForCausalLM(config)
    _spread(model)
    model.save_pretrained(directory)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(directory)


def _vit_gpt2(directory: Path) -> None:
    size = len(_tokenizer(directory))
    seeing = ViTConfig(**_BERT, **_SEEN)
    saying = GPT2Config(
        **_ids(size), n_embd=16, n_layer=1, n_head=2, n_positions=64, add_cross_attention=True
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seeing, saying)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config)
    _spread(model)
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.save_pretrained(directory)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(directory)


COCA = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIDE,
        "layers": 1,
        "width": 16,
        "head_width": 8,
        "patch_size": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "attn_pooler_heads": 2,
    },
    "custom_text": True,
}


def _coca(directory: Path) -> None:
    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    document = {"model_cfg": COCA, "preprocess_cfg": preprocessing}
    (directory / "open_clip_config.json").write_text(json.dumps(document))
    model = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    _spread(model)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(weights, directory / "open_clip_model.safetensors")
