from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest
from nltk.corpus.reader import WordListCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from captioner import vocabulary
from captioner.errors import InputError
from captioner.vocabulary import EOS, PAD, SOS, UNK, Vocabulary, count_words, tokenize

CAPTIONS = ["A dog runs.", "A dog and a cat.", "The cat sleeps; the dog runs."]


@pytest.fixture(autouse=True)
def no_nltk_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No NLTK data anywhere: only what needs none may work."""
    fresh = LazyCorpusLoader("stopwords", WordListCorpusReader, r"(?!README|\.).*")
    monkeypatch.setattr(nltk.corpus, "stopwords", fresh)
    monkeypatch.setattr(nltk.data, "path", [])
    vocabulary.stop_words.cache_clear()
    yield
    vocabulary.stop_words.cache_clear()


@pytest.fixture
def stop_word_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpora" / "stopwords"
    folder.mkdir(parents=True)
    (folder / "english").write_text("a\nthe\nand\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A Dog RUNS", ["a", "dog", "runs"]),
        (
            "A tri-colored dog, running on the road .",
            ["a", "tri-colored", "dog", "running", "on", "the", "road"],
        ),
        ('Two "big" dogs!?', ["two", "big", "dogs"]),
        ("A dog & a cat - playing ; (outside)", ["a", "dog", "a", "cat", "playing", "outside"]),
        ("The man's 2 dogs don't bark", ["the", "man", "'s", "2", "dogs", "do", "n't", "bark"]),
        (
            "A dog runs. It is fast! Is it? Yes.",
            ["a", "dog", "runs", "it", "is", "fast", "is", "it", "yes"],
        ),
        ("Ein Hündchen im Café", ["ein", "hündchen", "im", "café"]),
        (
            "he cannot , lemme gimme gonna gotta wanna",
            ["he", "can", "not", "lem", "me", "gim", "me", "gon", "na", "got", "ta", "wan", "na"],
        ),
        ("", []),
        (" . , !", []),
        ("A dog\nand  a\tcat", ["a", "dog", "and", "a", "cat"]),
    ],
)
def test_captions_become_lower_case_words(caption: str, tokens: list[str]) -> None:
    assert tokenize(caption) == tokens


def test_plain_captions_are_cut_as_nltk_cuts_them() -> None:
    dice = random.Random(0)
    pieces = [*"ab01-,.", " ", " ", " ", ", ", " .", "gim", "me", "can", "not", "mr", "'s", "\n"]
    captions = {"".join(dice.choices(pieces, k=dice.randint(1, 12))) for _ in range(20_000)}
    plain = [caption for caption in captions if vocabulary._PLAIN.fullmatch(caption)]
    assert 1_000 < len(plain) < len(captions)
    assert [tokenize(caption) for caption in plain] == [
        vocabulary._nltk_words(caption) for caption in plain
    ]


def test_words_are_counted() -> None:
    assert count_words(CAPTIONS) == Counter(
        {"dog": 3, "a": 3, "cat": 2, "the": 2, "runs": 2, "and": 1, "sleeps": 1}
    )


def test_counts_of_parts_add_up() -> None:
    parts = count_words(CAPTIONS[:1]) + count_words([]) + count_words(CAPTIONS[1:])
    assert parts == count_words(CAPTIONS)


def test_special_tokens_come_first_then_words_by_frequency_and_alphabet() -> None:
    words = Vocabulary.build(count_words(CAPTIONS), minimum_count=2).words
    assert (PAD, SOS, EOS, UNK) == (0, 1, 2, 3)
    assert words == ["<PAD>", "<SOS>", "<EOS>", "<UNK>", "a", "dog", "cat", "runs", "the"]


@pytest.mark.parametrize(("minimum", "size"), [(1, 4 + 7), (2, 4 + 5), (3, 4 + 2), (4, 4)])
def test_rare_words_are_left_out(minimum: int, size: int) -> None:
    assert len(Vocabulary.build(count_words(CAPTIONS), minimum)) == size


def test_the_order_of_counting_does_not_matter() -> None:
    forward, backward = (
        Vocabulary.build(count_words(part), 1) for part in (CAPTIONS, reversed(CAPTIONS))
    )
    assert forward.words == backward.words


def test_encoding_frames_the_words_and_maps_strangers_to_unk() -> None:
    vocabulary = Vocabulary.build(count_words(CAPTIONS), minimum_count=2)
    assert vocabulary.encode("The ZEBRA runs.") == [SOS, 8, UNK, 7, EOS]
    assert vocabulary.encode("") == [SOS, EOS]


def test_decoding_undoes_encoding_up_to_the_first_end() -> None:
    vocabulary = Vocabulary.build(count_words(CAPTIONS), minimum_count=1)
    ids = vocabulary.encode("A cat and the dog.")
    assert vocabulary.decode(ids) == "a cat and the dog"
    assert vocabulary.decode([*ids, *ids]) == "a cat and the dog"
    assert vocabulary.decode([*ids[1:-1], UNK, PAD]) == "a cat and the dog"
    assert vocabulary.decode([]) == ""


def test_a_caption_cannot_smuggle_in_special_tokens() -> None:
    vocabulary = Vocabulary.build(count_words(CAPTIONS), minimum_count=1)
    assert not {PAD, SOS, EOS} & set(vocabulary.encode("<PAD> <EOS> dog <SOS>")[1:-1])


def test_json_brings_back_the_same_vocabulary() -> None:
    vocabulary = Vocabulary.build(count_words([*CAPTIONS, "Ein Café"]), minimum_count=1)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.words == vocabulary.words
    assert again.encode("a café dog") == vocabulary.encode("a café dog")


def test_json_is_readable_with_a_word_a_line() -> None:
    text = Vocabulary.build(count_words(["Ein Café"]), minimum_count=1).to_json()
    assert '"café",\n"ein"\n' in text
    document = json.loads(text)
    assert document["words"][:4] == ["<PAD>", "<SOS>", "<EOS>", "<UNK>"]
    assert document["tokenizer"].startswith("nltk ")


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="<PAD> <SOS> <EOS> <UNK>"):
        Vocabulary(["a", "dog"])


def test_missing_stop_words_say_how_to_get_them() -> None:
    with pytest.raises(InputError) as refusal:
        Vocabulary.build(count_words(CAPTIONS), 1, remove_stop_words=True)
    assert "vocabulary.remove_stop_words" in str(refusal.value)
    assert "python -m nltk.downloader stopwords" in str(refusal.value)


@pytest.mark.usefixtures("stop_word_list")
def test_stop_words_are_removed_from_the_words_and_from_captions() -> None:
    vocabulary = Vocabulary.build(count_words(CAPTIONS), 1, remove_stop_words=True)
    assert vocabulary.words[4:] == ["dog", "cat", "runs", "sleeps"]
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.encode("The cat and a zebra") == [SOS, 5, UNK, EOS]
