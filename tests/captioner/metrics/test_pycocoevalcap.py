"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap's, on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from captioner.metrics import ORDERS, BleuStatistics, CiderD, corpus_bleu, rouge_l
from tests.captioner.metrics.corpora import CORPORA, Corpus, Tokens

CLOSE = {"rel": 0, "abs": 1e-6}


def coco(scorer: str, hypotheses: Sequence[Tokens], references: Sequence[list[Tokens]]) -> Any:
    """The corpus score and those of all images, by pycocoevalcap."""
    module = pytest.importorskip(f"pycocoevalcap.{scorer.lower()}.{scorer.lower()}")
    known = {
        number: [" ".join(words) for words in group] for number, group in enumerate(references)
    }
    said = {number: [" ".join(words)] for number, words in enumerate(hypotheses)}
    options = {"verbose": 0} if scorer == "Bleu" else {}
    return getattr(module, scorer)().compute_score(known, said, **options)


def check_bleu(mine: Sequence[float], theirs: Sequence[float], matches: Sequence[float]) -> None:
    for order in ORDERS:
        if all(matches[:order]):
            assert mine[order - 1] == pytest.approx(theirs[order - 1], **CLOSE)
        else:
            # A precision of zero: NLTK takes the smallest float for it, pycocoevalcap at most
            # 1e-15 / 1e-9, whose fourth root is not that small.
            assert mine[order - 1] < 1e-70
            assert theirs[order - 1] < 0.04


@pytest.mark.parametrize("name", CORPORA)
def test_bleu(name: str) -> None:
    """In captions of fewer words than n, NLTK counts one n-gram, pycocoevalcap none. Without those
    that NLTK has counted, the two agree on every corpus; of four words and more they agree as
    they are."""
    hypotheses, references = CORPORA[name]()
    rows = counts((hypotheses, references))
    lengths = rows[:, 8:9]
    assert (rows[:, 4:8] == np.maximum(1, lengths - np.arange(4))).all()
    rows[:, 4:8] = np.maximum(0, lengths - np.arange(4))
    whole, each = coco("Bleu", hypotheses, references)
    check_bleu(corpus_bleu(rows.sum(axis=0)), whole, rows[:, :4].sum(axis=0))
    for row, theirs in zip(rows, zip(*each)):
        check_bleu(corpus_bleu(row), theirs, row[:4])


@pytest.mark.parametrize("name", ["flickr8k", "five references", "long captions"])
def test_bleu_of_captions_of_four_words_and_more(name: str) -> None:
    pairs = [(said, known) for said, known in zip(*CORPORA[name]()) if len(said) >= 4]
    hypotheses, references = map(list, zip(*pairs))
    rows = counts((hypotheses, references))
    found = corpus_bleu(rows.sum(axis=0))
    assert 0.005 < found.min() < found.max() < 0.95
    assert found.tolist() == pytest.approx(coco("Bleu", hypotheses, references)[0], **CLOSE)


def counts(corpus: Corpus) -> NDArray[Any]:
    """The statistics of each image, ``(images, 10)``."""
    return np.array([BleuStatistics.of(said, known).to_list() for said, known in zip(*corpus)])


@pytest.mark.parametrize("name", CORPORA)
def test_rouge_l(name: str) -> None:
    hypotheses, references = CORPORA[name]()
    whole, each = coco("Rouge", hypotheses, references)
    mine = [rouge_l(said, known) for said, known in zip(hypotheses, references)]
    assert mine == pytest.approx(list(each), **CLOSE)
    assert np.mean(mine) == pytest.approx(whole, **CLOSE)


@pytest.mark.parametrize("name", CORPORA)
def test_cider_d(name: str) -> None:
    hypotheses, references = CORPORA[name]()
    whole, each = coco("Cider", hypotheses, references)
    cider = CiderD.of_references(references)
    mine = [cider.score(said, cider.references(known)) for said, known in zip(*CORPORA[name]())]
    assert mine == pytest.approx(list(each), **CLOSE)
    assert np.mean(mine) == pytest.approx(whole, **CLOSE)


def test_the_compared_scores_differ_from_image_to_image() -> None:
    """Or the comparison would show little."""
    for name in ("five references", "references of unequal number, words said again"):
        hypotheses, references = CORPORA[name]()
        for scorer in ("Rouge", "Cider"):
            each = coco(scorer, hypotheses, references)[1]
            assert len(set(np.round(each, 6))) > 40
            assert np.std(each) > 0.05


def test_an_empty_caption_of_an_image_with_an_empty_reference_scores_nothing() -> None:
    """pycocoevalcap's ROUGE-L splits "" into one empty word, and finds it in the reference."""
    assert rouge_l([], [[], ["a", "dog"]]) == 0.0
    assert coco("Rouge", [[]], [[[], ["a", "dog"]]])[0] == 1.0
