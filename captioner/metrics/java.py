"""METEOR and SPICE: Java programs that pycocoevalcap brings (extra ``scores``).

Denkowski & Lavie, "Meteor Universal", WMT 2014; Anderson et al., "SPICE: Semantic Propositional
Image Caption Evaluation", ECCV 2016.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioner.errors import InputError
from captioner.metrics.arrays import ratio

METRICS = ("meteor", "spice")
METEOR_STATISTICS = 23
# Where they stand; of the caption and of the reference, but for the chunks.
_LENGTHS, _FUNCTION_WORDS, _MATCHES = slice(0, 2), slice(2, 4), slice(4, 20)
_CHUNKS, _MATCHED = 20, slice(21, 23)

# METEOR's parameters for English, task "rank".
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # weights of: exact, stem, synonym, paraphrase


def require(metrics: Sequence[str]) -> None:
    """See that all that these metrics need is on this machine.

    Raises:
        InputError: naming what is missing and how to get it.
    """
    asked = [metric for metric in METRICS if metric in metrics]
    if not asked:
        return
    names = ", ".join(asked)
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise InputError(
            f"score.also: {names}: pycocoevalcap is not installed: pip install 'captioner[scores]'"
        )
    if shutil.which("java") is None:
        raise InputError(
            f"score.also: {names}: no `java` on the PATH; install a Java runtime (8 or newer) on "
            "every machine of the cluster, or leave these scores out"
        )
    if "spice" in asked and not list((_package() / "spice" / "lib").glob("*-models.jar")):
        raise InputError(
            "score.also: spice: the models of Stanford CoreNLP are not there; "
            "`python -m pycocoevalcap.spice.get_stanford_models` downloads them (400 MB)"
        )


def _package() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None, "require() comes first"
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


class Meteor:
    """METEOR 1.5's process. It takes some seconds to start and 2 GB of memory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Meteor]:
        """A process that ends with the block."""
        jar = _package() / "meteor" / "meteor-1.5.jar"
        options = ("-", "-", "-stdio", "-l", "en", "-norm")
        with subprocess.Popen(
            ["java", "-Xmx2G", "-jar", str(jar), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        ) as process:
            try:
                yield cls(process)
            finally:
                process.kill()
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # what it was last asked is still there
                    process.stdin.close()

    def statistics(
        self, caption: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[float]:
        """The counts of one caption against the reference that fits it best: 23 numbers that add
        up over captions."""
        texts = [" ".join(words) for words in (*references, caption)]
        # What separates the texts may stand in one of them.
        line = " ||| ".join(("SCORE", *(text.replace("|||", "") for text in texts)))
        counts = [float(number) for number in self._ask(line).split()]
        if counts[_CHUNKS] == 1 and counts[_MATCHED] == counts[_LENGTHS]:
            counts[_CHUNKS] = 0.0  # as the program adds it up: a whole reference is no fragment
        return counts

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait(timeout=60)
            raise InputError(
                f"score.also: meteor: java ended with status {code}; try `java -version`: METEOR "
                "needs Java 8 or newer and 2 GB of memory"
            )
        return answer


def meteor(statistics: NDArray[Any]) -> NDArray[np.float64]:
    """METEOR, ``(...)``, of sums of ``Meteor.statistics``, ``(..., 23)``: what the program itself
    computes of them (Denkowski & Lavie, sections 2 and 3)."""
    lengths, function_words = statistics[..., _LENGTHS], statistics[..., _FUNCTION_WORDS]
    matches = statistics[..., _MATCHES].reshape(*statistics.shape[:-1], 4, 2, 2)  # matcher, kind
    chunks, matched = statistics[..., _CHUNKS], statistics[..., _MATCHED]

    kinds = np.array([_DELTA, 1.0 - _DELTA])  # content words, function words
    found = np.einsum("...mks,m,k->...s", matches, _MATCHERS, kinds)
    there = _DELTA * (lengths - function_words) + (1.0 - _DELTA) * function_words
    precision, recall = np.moveaxis(ratio(found, there), -1, 0)
    mean = ratio(precision * recall, _ALPHA * precision + (1.0 - _ALPHA) * recall)
    fragmentation = ratio(chunks, matched.mean(axis=-1))
    scores: NDArray[np.float64] = mean * (1.0 - _GAMMA * fragmentation**_BETA)
    return scores


def spice(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """SPICE of each caption: the F-score of what it says in objects, attributes and relations; 0
    where neither it nor its references say anything of the kind."""
    from pycocoevalcap.spice.spice import Spice

    said = {number: [" ".join(words)] for number, words in enumerate(captions)}
    known = {
        number: [" ".join(words) for words in of_image]
        for number, of_image in enumerate(references)
    }
    _, found = Spice().compute_score(known, said)
    return [0.0 if (score := each["All"]["f"]) != score else float(score) for each in found]
