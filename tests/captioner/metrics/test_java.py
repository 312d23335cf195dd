from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import InputError
from captioner.metrics import java
from tests.captioner.metrics.corpora import Corpus

CAPTIONS = {
    "a dog runs on the grass": ["the brown dog is running", "a dog is running in the grass"],
    "a big cat sleeps on the large sofa": ["the large kitty is asleep on a couch"],
    "two children play football": ["nothing of it", "two children play football"],
    "sleeps": ["a cat sleeps"],
    "": ["a cat sleeps"],
    "the dogs ran quickly through a field": ["a dog runs fast through tall grass", "dogs in it"],
    "a|||b c": ["c"],
}
CORPUS: Corpus = (
    [said.split() for said in CAPTIONS],
    [[text.split() for text in known] for known in CAPTIONS.values()],
)


def has_models() -> bool:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = Path(next(iter(spec.submodule_search_locations))) / "spice" / "lib"
    return bool(list(folder.glob("*-models.jar")))


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")


@pytest.fixture(scope="module")
def program() -> Iterator[java.Meteor]:
    pytest.importorskip("pycocoevalcap")
    with java.Meteor.start() as found:
        yield found


def test_nothing_is_needed_where_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    java.require([])
    java.require(["clip_score"])


def test_missing_java_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"score\.also: meteor: no `java` on the PATH"):
        java.require(["meteor"])


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"meteor, spice: .* pip install 'captioner\[scores\]'"):
        java.require(["spice", "meteor"])


@needs_java
@pytest.mark.skipif(has_models(), reason="the models of SPICE are there")
def test_missing_models_of_spice_are_named_and_not_fetched() -> None:
    pytest.importorskip("pycocoevalcap")
    with pytest.raises(InputError, match=r"python -m pycocoevalcap\.spice\.get_stanford_models"):
        java.require(["spice"])
    assert not has_models()


@needs_java
@pytest.mark.skipif(not has_models(), reason="SPICE's Stanford CoreNLP models are not there")
def test_spice_of_a_reference_itself_is_one() -> None:
    said = ["a", "brown", "dog", "runs", "on", "the", "grass"]
    assert java.spice([said, ["two"]], [[said], [said]]) == pytest.approx([1.0, 0.0])


@needs_java
def test_meteor_equals_pycocoevalcaps(program: java.Meteor) -> None:
    """Of each caption, and of all of them together."""
    module = pytest.importorskip("pycocoevalcap.meteor.meteor")
    known = {image: [" ".join(words) for words in group] for image, group in enumerate(CORPUS[1])}
    said = {image: [" ".join(words)] for image, words in enumerate(CORPUS[0])}
    whole, each = module.Meteor().compute_score(known, said)
    rows = np.array([program.statistics(mine, theirs) for mine, theirs in zip(*CORPUS)])
    assert rows.shape == (len(CORPUS[0]), java.METEOR_STATISTICS)
    assert java.meteor(rows) == pytest.approx(each, rel=0, abs=1e-9)
    assert float(java.meteor(rows.sum(axis=0))) == pytest.approx(whole, rel=0, abs=1e-9)
    assert each[2] == pytest.approx(1.0)
    assert each[4] == 0.0
    assert len(set(np.round(each, 6))) == len(each)


@needs_java
def test_a_program_that_ends_is_told_of() -> None:
    pytest.importorskip("pycocoevalcap")
    with java.Meteor.start() as program:
        program._process.kill()
        with pytest.raises(InputError, match=r"java ended with status -9"):
            program.statistics(["a"], [["a"]])
