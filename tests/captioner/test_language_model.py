from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from captioner import decoders, model, model_files
from captioner.config import Search
from captioner.configuration import parse
from captioner.decoders.gpt2 import GPT2Decoder
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.language_model import FIRST, BytePairVocabulary, LanguageModel
from captioner.vocabulary import EOS, PAD, SOS, UNK, tokenize
from tests.language import save_gpt2

CAPTIONS = [
    "A black dog is running through the snow .",
    "Two children's kites, red and blue, fly over a pier!",
    "A man in a T-shirt surfs at 7 a.m .",
    "Ein Café in Zürich",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("language") / "gpt2", CAPTIONS * 3)


@pytest.fixture(scope="module")
def pretrained(directory: Path) -> tuple[LanguageModel, BytePairVocabulary]:
    return LanguageModel.pretrained(str(directory))


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_come_back_as_the_words_that_other_decoders_say(
    pretrained: tuple[LanguageModel, BytePairVocabulary], caption: str
) -> None:
    _, vocabulary = pretrained
    ids = vocabulary.encode(caption)
    assert ids[0] == SOS
    assert ids[-1] == EOS
    assert not {PAD, SOS, EOS, UNK} & set(ids[1:-1])
    assert vocabulary.said([*ids[1:], 9, 9]) == tokenize(caption)
    assert vocabulary.decode(ids) == " ".join(tokenize(caption))


def test_ids_are_those_of_the_language_model_behind_four_of_our_own(
    directory: Path, pretrained: tuple[LanguageModel, BytePairVocabulary]
) -> None:
    _, vocabulary = pretrained
    tokenizer = GPT2Tokenizer.from_pretrained(directory)
    theirs = tokenizer(" a black dog in zürich", add_special_tokens=False)["input_ids"]
    assert vocabulary.ids(["a", "black", "dog", "in", "zürich"]) == [
        SOS,
        *(FIRST + number for number in theirs),
        EOS,
    ]
    assert len(vocabulary) == len(vocabulary.words) == FIRST + len(tokenizer)


def test_the_vocabulary_is_written_whole(
    pretrained: tuple[LanguageModel, BytePairVocabulary],
) -> None:
    _, vocabulary = pretrained
    again = BytePairVocabulary.from_json(vocabulary.to_json())
    assert again.words == vocabulary.words
    assert [again.encode(text) for text in CAPTIONS] == [
        vocabulary.encode(text) for text in CAPTIONS
    ]
    assert again.to_json() == vocabulary.to_json()


def test_words_are_scored_as_the_language_model_scores_them(
    directory: Path,
    pretrained: tuple[LanguageModel, BytePairVocabulary],
    make_identity: Callable[..., EncoderIdentity],
) -> None:
    """With its pretrained weights, behind the same vectors."""
    language_model, vocabulary = pretrained
    decoder = GPT2Decoder(language_model=language_model, embedding_size=6, prefix_length=3)
    decoder.load_pretrained(str(directory))
    decoder.eval()
    theirs = GPT2LMHeadModel.from_pretrained(directory).eval()
    embedding, ids = torch.randn(1, 6), torch.tensor([[vocabulary.encode(CAPTIONS[0])[:-1]]])
    with torch.inference_mode():
        logits, _ = decoder(embedding, None, ids)
        prefix = decoder.mapping(decoder.embedding_norm(embedding)).view(1, 3, -1)
        words = torch.tensor([[language_model.end, *(ids[0, 0, 1:] - FIRST).tolist()]])
        inputs = torch.cat([prefix, theirs.transformer.wte(words)], dim=1)
        expected = theirs(inputs_embeds=inputs).logits[0, 3:]
    torch.testing.assert_close(logits[:, EOS], expected[:, language_model.end])
    others = [number for number in range(expected.shape[1]) if number != language_model.end]
    torch.testing.assert_close(logits[:, FIRST:][:, others], expected[:, others])
    impossible = [PAD, SOS, UNK, FIRST + language_model.end]
    assert logits.softmax(-1)[:, impossible].sum() == 0


def test_a_model_directory_needs_neither_the_language_model_nor_the_network(
    directory: Path,
    tmp_path: Path,
    make_identity: Callable[..., EncoderIdentity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = Path(shutil.copytree(directory, tmp_path / "gpt2"))
    decoder_options = {"type": "gpt2", "attention": "none", "pretrained": str(there)}
    values: dict[str, Any] = {
        "name": "x",
        "run": str(tmp_path / "run"),
        "source": {"images": str(tmp_path)},
        "decoder": decoder_options,
    }
    config, identity = parse(values, "test"), make_identity(patches=0, channels=0)
    language_model, vocabulary = LanguageModel.pretrained(str(there))
    decoder = decoders.build(config.decoder, identity, len(vocabulary), language_model)
    url = config.at("model")
    model.write_description(url, config, vocabulary, identity, language_model)
    model.save_weights(f"{url}/{model_files.WEIGHTS}", decoder)
    shutil.rmtree(there)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = model.CaptionModel.load(url)
    embedding = np.random.default_rng(0).normal(size=(2, identity.embedding_size))
    captions = loaded.caption(embedding.astype(np.float32), None, config.search)
    assert len(captions) == 2
    assert all(caption.log_probability < 0 for caption in captions)
    most = loaded.decoder.most_words
    for words in (most, most + 1):
        longest = Search(max_words=words, min_words=words, beam_size=1)
        if words == most:
            loaded.check_search(longest)
            assert loaded.caption(embedding.astype(np.float32), None, longest)
            continue
        with pytest.raises(InputError, match=rf"search\.max_words: .* places for {most} tokens"):
            loaded.check_search(longest)


def test_what_is_no_gpt2_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"decoder\.pretrained: .*nothing is neither a directory"):
        LanguageModel.pretrained(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match=r"is a bert, and no GPT-2"):
        LanguageModel.pretrained(str(tmp_path))


def test_weights_that_could_run_code_are_not_read(directory: Path, tmp_path: Path) -> None:
    there = Path(shutil.copytree(directory, tmp_path / "gpt2"))
    weights = GPT2LMHeadModel.from_pretrained(there).state_dict()
    (there / "model.safetensors").unlink()
    torch.save(weights, there / "pytorch_model.bin")
    language_model, _ = LanguageModel.pretrained(str(there))
    decoder = GPT2Decoder(language_model=language_model, embedding_size=6)
    with pytest.raises(InputError, match=r"decoder\.pretrained: no weights of"):
        decoder.load_pretrained(str(there))
