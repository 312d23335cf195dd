"""What the scores of every image need to know of all others: counts of texts, of any part of the
images, which add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from captioner import chance, manifest
from captioner.metrics import CiderD, Variety
from captioner.metrics.cider import Ngram, Tokens, ngrams_of_image
from captioner.vocabulary import END, tokenize


def count_texts(rows: pa.Table) -> pa.Table:
    """Caption rows -> ``kind text count``, which add up: of every ``caption`` how often it was
    said, of every ``ngram`` in the references of how many scored images it occurs."""
    counts: dict[str, Counter[str]] = {"caption": Counter(), "ngram": Counter(), "image": Counter()}
    for caption, references in zip(rows["caption"].to_pylist(), rows["references"].to_pylist()):
        if caption is None:
            continue
        counts["caption"][caption] += 1
        if references:
            _count_image(counts, map(tokenize, references))
    return _table(counts)


def count_training(rows: pa.Table, share: float, seed: int) -> pa.Table:
    """Manifest rows -> ``kind text count``, as above, of every ``ngram`` in the captions of such a
    share of the training images. The end of a caption counts as a word."""
    counts: dict[str, Counter[str]] = {"ngram": Counter(), "image": Counter()}
    training = rows.filter(manifest.TRAINING)
    if share < 1.0:
        drawn = chance.of_each(training["serial"].to_numpy(), seed) < share
        training = training.filter(pa.array(drawn))
    for captions in filter(None, training["captions"].to_pylist()):
        _count_image(counts, ([*tokenize(caption), END] for caption in captions))
    return _table(counts)


def _count_image(counts: Mapping[str, Counter[str]], references: Iterable[Tokens]) -> None:
    counts["image"][""] += 1
    counts["ngram"].update(" ".join(map(str, ngram)) for ngram in ngrams_of_image(references))


def count_references(rows: pa.Table, training: bool) -> pa.Table:
    """Manifest rows -> ``kind text count`` of every ``reference``, in words: of the images that are
    there to learn from, or of all."""
    rows = rows.filter(manifest.TRAINING) if training else rows
    texts = (text for of_image in rows["captions"].to_pylist() for text in of_image)
    return _table({"reference": Counter(" ".join(tokenize(text)) for text in texts)})


def _table(counts: Mapping[str, Counter[str]]) -> pa.Table:
    columns = {
        "kind": pa.array([kind for kind, of in counts.items() for _ in of], pa.string()),
        "text": pa.array([text for of in counts.values() for text in of], pa.large_string()),
        "count": pa.array([n for of in counts.values() for n in of.values()], pa.int64()),
    }
    return pa.table(columns)


def add_up(parts: Iterable[pa.Table]) -> pa.Table:
    """The counts of several parts together."""
    together = pa.concat_tables([_table({}), *parts])
    found = together.group_by(["kind", "text"]).aggregate([("count", "sum")])
    return found.rename_columns(["kind", "text", "count"])


def gist(counts: pa.Table) -> pa.Table:
    """The counts of everything -> what is asked of them: every ``ngram`` of several images; of each
    ``caption`` and ``reference`` the most frequent alone, how many there are (``captions``), and
    how many of those differ (``distinct captions``)."""
    counts = add_up([counts])
    several = pc.or_(pc.not_equal(counts["kind"], "ngram"), pc.greater(counts["count"], 1))
    parts = [
        counts.filter(pc.and_(several, pc.is_in(counts["kind"], pa.array(["ngram", "image"]))))
    ]
    for kind in ("caption", "reference"):
        found = counts.filter(pc.equal(counts["kind"], kind))
        first = found.sort_by([("count", "descending"), ("text", "ascending")]).slice(0, 1)
        total = Counter({"": pc.sum(found["count"]).as_py() or 0})
        distinct = Counter({"": len(found)})
        parts += [first, _table({f"{kind}s": total, f"distinct {kind}s": distinct})]
    return pa.concat_tables(parts)


def variety_of(counts: pa.Table) -> Variety:
    """Of the captions, from their ``gist``."""
    total, distinct = (texts_of(counts, kind)[""] for kind in ("captions", "distinct captions"))
    text, times = texts_of(counts, "caption").most_common(1)[0]
    return Variety(total, distinct, text, times / total)


def texts_of(counts: pa.Table, kind: str, at_least: int = 1) -> Counter[str]:
    """The texts of one kind that occur so often."""
    wanted = pc.and_(pc.equal(counts["kind"], kind), pc.greater_equal(counts["count"], at_least))
    found = counts.filter(wanted)
    return Counter(dict(zip(found["text"].to_pylist(), found["count"].to_pylist())))


def cider_of(counts: pa.Table) -> CiderD:
    """CIDEr-D with the document frequencies of the scored references."""
    ngrams = texts_of(counts, "ngram", at_least=2)  # what occurs once need not be remembered
    frequencies: dict[Ngram, int] = {tuple(text.split(" ")): n for text, n in ngrams.items()}
    return CiderD(frequencies, texts_of(counts, "image")[""])
