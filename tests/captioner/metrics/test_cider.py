from __future__ import annotations

from collections import Counter

import pytest

from captioner.metrics import CiderD
from captioner.metrics.cider import ngrams_of_image
from tests.captioner.metrics.corpora import Corpus, babble

OTHERS = [[["a", "cat", "sleeps", "on", "a", "sofa"]], [["two", "men", "play", "football"]]]
DOG = ["a", "brown", "dog", "runs", "fast"]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return babble(0)


def test_documents_of_any_parts_add_up(corpus: Corpus) -> None:
    said, known = corpus
    parts = known[:11], known[11:50], known[50:]
    together: Counter[tuple[str, ...]] = Counter()
    for part in parts:
        together += Counter(ngram for group in part for ngram in ngrams_of_image(group))
    merged, whole = CiderD(together, len(known)), CiderD.of_references(known)
    for caption, group in zip(said, known):
        one, other = merged.references(group), whole.references(group)
        assert merged.score(caption, one) == whole.score(caption, other)


def test_ngrams_of_one_image_alone_may_be_left_out(corpus: Corpus) -> None:
    said, known = corpus
    every = Counter(ngram for group in known for ngram in ngrams_of_image(group))
    few = {ngram: count for ngram, count in every.items() if count > 1}
    assert len(few) < len(every) / 2
    short, long = CiderD(few, len(known)), CiderD(every, len(known))
    for caption, group in zip(said, known):
        expected = long.score(caption, long.references(group))
        assert short.score(caption, short.references(group)) == expected


def test_words_may_be_numbers(corpus: Corpus) -> None:
    said, known = corpus
    ids = {
        word: number for number, word in enumerate(sorted({w for g in known for r in g for w in r}))
    }
    words = CiderD.of_references(known)
    numbers = CiderD.of_references(
        [[[ids[word] for word in reference] for reference in group] for group in known]
    )
    for caption, group in zip(said, known):
        of_numbers = numbers.references([tuple(ids[word] for word in text) for text in group])
        expected = words.score(caption, words.references(group))
        assert numbers.score([ids[word] for word in caption], of_numbers) == expected


def test_a_reference_itself_scores_ten() -> None:
    cider = CiderD.of_references([[DOG], *OTHERS])
    assert cider.score(DOG, cider.references([DOG])) == pytest.approx(10.0)
    assert cider.score(DOG, cider.references([DOG, ["nothing", "of", "it"]])) == pytest.approx(
        5.0, abs=0.2
    )


def test_what_every_image_has_counts_nothing() -> None:
    cider = CiderD.of_references([[DOG], *OTHERS, [["a", "a"]]][:2])
    assert cider.score(["a"], cider.references([DOG])) == 0.0
    assert cider.score(["dog"], cider.references([DOG])) > 0.0


def test_saying_a_word_again_and_a_length_that_differs_cost() -> None:
    cider = CiderD.of_references([[DOG], *OTHERS])
    references = cider.references([DOG])
    scores = [cider.score([*DOG, *["dog"] * more], references) for more in range(6)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.75 * scores[0]


def test_nothing_said_or_nothing_known() -> None:
    cider = CiderD.of_references([[DOG], *OTHERS])
    assert cider.score([], cider.references([DOG])) == 0.0
    assert cider.score(DOG, cider.references([])) == 0.0
    assert cider.score(DOG, cider.references([[]])) == 0.0


def test_document_frequencies_of_other_images_than_the_scored() -> None:
    """As in training: what the references of no known image say is as rare as can be."""
    cider = CiderD.of_references(OTHERS)
    unseen = cider.score(["zebra"], cider.references([["zebra"]]))
    assert unseen == pytest.approx(2.5)  # one order of four
