"""NLTK tokens <-> ids."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from captioner.errors import InputError

PAD, SOS, EOS, UNK = range(4)
SPECIAL = ("<PAD>", "<SOS>", "<EOS>", "<UNK>")
END = SPECIAL[EOS]


def tokenize(caption: str) -> list[str]:
    """Lower-case NLTK words; tokens without a letter or digit are dropped.

    >>> tokenize("A tri-colored dog, running on the road .")
    ['a', 'tri-colored', 'dog', 'running', 'on', 'the', 'road']
    """
    caption = caption.lower()
    if _PLAIN.fullmatch(caption) and not _CONTRACTIONS.search(caption):
        return _PLAIN_WORD.findall(caption)
    return _nltk_words(caption)


# Captions are nearly all like this: words, commas between them, a full stop. There NLTK only finds
# the words, in twenty times the time, which training would spend on every caption in every epoch.
_PLAIN = re.compile(
    r"W(?:(?: ++(?:, ++)?+|, ++)W)*+ *+\.?+ *+".replace("W", "[a-z0-9]++(?:-[a-z0-9]++)*+")
)
_PLAIN_WORD = re.compile("[a-z0-9-]+")
_CONTRACTIONS = re.compile("cannot|gimme|gonna|gotta|lemme|wanna")  # to NLTK each is two words


def _nltk_words(caption: str) -> list[str]:
    sentences, words = _tokenizers()
    return [
        word
        for sentence in sentences.tokenize(caption)
        for word in words.tokenize(sentence)
        if any(character.isalnum() for character in word)
    ]


@functools.cache
def _tokenizers() -> tuple[Any, Any]:
    """nltk.word_tokenize is these two, with a trained Punkt that must be downloaded. An untrained
    one differs only at abbreviations."""
    # Imported when needed: it takes half a second in each new worker, and most have no captions.
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


@functools.cache
def stop_words() -> frozenset[str]:
    """NLTK's English stop words.

    Raises:
        InputError: the list is not installed here.
    """
    try:
        from nltk.corpus import stopwords

        return frozenset(stopwords.words("english"))
    except LookupError:
        raise InputError(
            "vocabulary.remove_stop_words needs NLTK's list, which is not installed: run "
            "`python -m nltk.downloader stopwords`, or set vocabulary.remove_stop_words=false"
        ) from None


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each token occurs. Counters of parts of the data add up to that of the whole."""
    return Counter(word for caption in captions for word in tokenize(caption))


class Vocabulary:
    """Words by id. Ids 0 to 3 are ``<PAD> <SOS> <EOS> <UNK>``."""

    def __init__(self, words: Sequence[str], remove_stop_words: bool = False) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"a vocabulary begins with {' '.join(SPECIAL)}")
        self.words = list(words)
        self.remove_stop_words = remove_stop_words
        self._id_of = {word: number for number, word in enumerate(self.words)}
        self._dropped = stop_words() if remove_stop_words else frozenset()

    @classmethod
    def build(
        cls, counts: Counter[str], minimum_count: int, remove_stop_words: bool = False
    ) -> Vocabulary:
        """The words seen at least ``minimum_count`` times, the most frequent first."""
        dropped = stop_words() if remove_stop_words else frozenset()
        kept = [word for word, n in counts.items() if n >= minimum_count and word not in dropped]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls([*SPECIAL, *kept], remove_stop_words)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """``<SOS> words <EOS>`` as ids; words that are not known become ``<UNK>``."""
        return self.ids(tokenize(caption))

    def ids(self, words: Iterable[str]) -> list[int]:
        """The same of a caption's words."""
        kept = (word for word in words if word not in self._dropped)
        return [SOS, *(self._id_of.get(word, UNK) for word in kept), EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to ``<EOS>``, joined by spaces, without special tokens."""
        return " ".join(self.said(ids))

    def said(self, ids: Iterable[int]) -> list[str]:
        """The words up to ``<EOS>``, without special tokens."""
        words = []
        for number in ids:
            if number == EOS:
                break
            if number >= len(SPECIAL):
                words.append(self.words[number])
        return words

    def to_json(self) -> str:
        import nltk

        document = {
            "tokenizer": f"nltk {nltk.__version__} NLTKWordTokenizer, lower case",
            "remove_stop_words": self.remove_stop_words,
            "words": self.words,
        }
        return json.dumps(document, indent=0, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        document = json.loads(text)
        return cls(document["words"], document["remove_stop_words"])
