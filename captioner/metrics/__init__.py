"""Scores of captions against references, on words as ``vocabulary.tokenize`` gives them."""

from captioner.metrics.bleu import ORDERS, BleuStatistics, sentence_bleu_4
from captioner.metrics.cider import CiderD
from captioner.metrics.variety import Variety, most_frequent_caption

__all__ = [
    "ORDERS",
    "BleuStatistics",
    "CiderD",
    "Variety",
    "most_frequent_caption",
    "sentence_bleu_4",
]
