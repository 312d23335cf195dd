"""A tiny GPT-2 with byte pairs of its own and random weights, as transformers saves one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

END = "<|endoftext|>"


def save_gpt2(directory: Path, texts: Iterable[str], vocabulary_size: int = 300) -> Path:
    directory.mkdir(parents=True)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocabulary_size, special_tokens=[END], show_progress=False)
    trained.save_model(str(directory))
    files = str(directory / "vocab.json"), str(directory / "merges.txt")
    tokenizer = GPT2Tokenizer(*files, bos_token=END, eos_token=END, unk_token=END)
    tokenizer.save_pretrained(directory)
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory
