"""A pretrained language model's architecture and byte pairs, as a model directory keeps them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from captioner.errors import InputError
from captioner.vocabulary import EOS, SOS, SPECIAL, Vocabulary, tokenize

FIRST = len(SPECIAL)  # the id of the language model's word 0


@contextlib.contextmanager
def needs_extra() -> Iterator[None]:
    """
    Raises:
        InputError: transformers is not installed.
    """
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()  # Ray's workers would each draw one
        yield
    except ImportError as error:
        raise InputError(
            f"transformers is needed for language models ({error}): "
            "pip install 'captioner[language]'"
        ) from None


@dataclass(frozen=True)
class LanguageModel:
    """What its decoder is built by, but for the weights."""

    config: dict[str, Any]  # of transformers' GPT2Config
    end: int  # the id of <|endoftext|>

    @classmethod
    def pretrained(cls, name: str) -> tuple[LanguageModel, BytePairVocabulary]:
        """That of a directory in transformers' format, or of the Hugging Face hub.

        Raises:
            InputError: it cannot be had, or is not GPT-2's architecture.
        """
        with needs_extra():
            from transformers import AutoConfig, AutoTokenizer
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            if config.model_type != "gpt2":
                raise InputError(
                    f"decoder.pretrained: {name} is a {config.model_type}, and no GPT-2"
                )
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"decoder.pretrained: {name} is neither a directory with a language model nor one "
                f"that the Hugging Face hub gives: {str(error).splitlines()[0]}\n"
                "Copy its config.json, model.safetensors and tokenizer.json to a directory and set "
                "decoder.pretrained=/path/to/it"
            ) from None
        vocabulary = BytePairVocabulary(tokenizer.backend_tokenizer, tokenizer.eos_token_id)
        return cls(config.to_diff_dict(), tokenizer.eos_token_id), vocabulary

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class BytePairVocabulary:
    """The byte pairs of a language model, with the methods of ``Vocabulary``.

    Id 0 to 3 are ``<PAD> <SOS> <EOS> <UNK>`` as everywhere, 4 is the language model's 0. What it
    reads and writes are the same words as other decoders': lower case, no punctuation.
    """

    def __init__(self, tokenizer: Any, end: int) -> None:
        """``tokenizer``: of the library tokenizers."""
        self._tokenizer, self._end = tokenizer, end
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.words = [*SPECIAL, *(tokenizer.id_to_token(number) or "" for number in range(size))]

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """``<SOS> byte pairs <EOS>`` as ids."""
        return self.ids(tokenize(caption))

    def ids(self, words: Iterable[str]) -> list[int]:
        """The same of a caption's words."""
        # Words in running text have a space before them.
        text = "".join(f" {word}" for word in words)
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [SOS, *(FIRST + number for number in found), EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to ``<EOS>``, joined by spaces."""
        return " ".join(self.said(ids))

    def said(self, ids: Iterable[int]) -> list[str]:
        """The words up to ``<EOS>``."""
        theirs = []
        for number in ids:
            if number == EOS:
                break
            if number >= FIRST:
                theirs.append(number - FIRST)
        return tokenize(self._tokenizer.decode(theirs, skip_special_tokens=True))

    def to_json(self) -> str:
        """With the whole tokenizer: a model directory needs no hub."""
        document = {"byte_pairs": json.loads(self._tokenizer.to_str()), "end": self._end}
        return json.dumps(document, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BytePairVocabulary:
        with needs_extra():
            from tokenizers import Tokenizer
        document = json.loads(text)
        return cls(Tokenizer.from_str(json.dumps(document["byte_pairs"])), document["end"])


AnyVocabulary = Vocabulary | BytePairVocabulary
