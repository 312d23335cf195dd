"""Scores of captions against references, on words as ``vocabulary.tokenize`` gives them.

``bleu`` ``rouge`` ``cider``   as NLTK and COCO's evaluation compute them
``java``                       METEOR and SPICE, through pycocoevalcap
``clip``                       CLIPScore, from embeddings
``bootstrap``                  confidence intervals of any of them
``variety``                    how different the captions are
"""

from captioner.metrics.bleu import ORDERS, BleuStatistics, corpus_bleu, sentence_bleu_4
from captioner.metrics.cider import CiderD
from captioner.metrics.rouge import rouge_l
from captioner.metrics.variety import Variety, most_frequent

__all__ = [
    "ORDERS",
    "BleuStatistics",
    "CiderD",
    "Variety",
    "corpus_bleu",
    "most_frequent",
    "rouge_l",
    "sentence_bleu_4",
]
