"""Scores through the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from captioner import parquet_dir
from captioner.metrics import BleuStatistics

Cli = Callable[..., Result]
CLIP_SCORE = ("--set", "score.also=[clip_score]")


def test_scores_that_cannot_be_had_are_refused_before_a_run_begins(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    """The tower of the tests is no CLIP: its text side knows 64 words."""
    refused = captioner("run", small_config, *CLIP_SCORE, status=2)
    assert "score.also: clip_score: the text side" in refused.output
    assert not (tmp_path / "run" / "manifest").exists()
    refused = captioner("run", small_config, "--set", "score.also=[clipscore]", status=2)
    assert "score.also.0: Input should be 'meteor'" in refused.output


def test_a_directory_has_no_features_to_score_by(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path
) -> None:
    arguments = ("--model", finished_run / "model", "--out", tmp_path / "out", *CLIP_SCORE)
    refused = captioner("caption", scene_data / "Images", *arguments, status=2)
    assert "a captioned directory has none" in refused.output
    assert not (tmp_path / "out").exists()


def test_other_scores_of_a_finished_run(captioner: Cli, finished_run: Path) -> None:
    before = json.loads((finished_run / "metrics.json").read_text())
    assert len(before["intervals"]) == 6
    options = ("--set", "score.resamples=200", "--group-by", "split")
    output = captioner("score", finished_run, *options).output
    assert "CIDEr-D" in output
    assert re.search(r"by split +images +BLEU-1", output)
    after = json.loads((finished_run / "metrics.json").read_text())
    assert after["cider"] == before["cider"]
    assert after["intervals"] != before["intervals"]
    assert not (finished_run / "report.html").exists()  # it tells of the scores before
    rows = parquet_dir.read(str(finished_run / "captions")).to_pylist()
    assert after["groups"]["by"] == "split"
    assert after["groups"]["scores"].keys() == {"train", "val", "test"}
    for split, found in after["groups"]["scores"].items():
        of_split = [row["bleu_statistics"] for row in rows if row["split"] == split]
        assert found["images"] == len(of_split)
        together = sum(map(BleuStatistics.from_list, of_split), BleuStatistics())
        assert found["bleu_4"] == pytest.approx(together.bleu()[3])


def test_a_file_of_anyones_captions_is_scored_as_a_run_is(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path
) -> None:
    theirs, out = tmp_path / "theirs.jsonl", tmp_path / "scores"
    rows = parquet_dir.read(str(finished_run / "captions")).to_pylist()
    lines = [json.dumps({"image": row["image_id"], "text": row["caption"]}) for row in rows]
    theirs.write_text("\n".join(lines[1:]))
    # An image that nobody has captioned, neither the model nor people.
    references = tmp_path / "captions.txt"
    references.write_text((scene_data / "captions.txt").read_text() + "nobody.png,\n")
    command = ("score", theirs, "--references", references, "--out", out)
    output = captioner(*command).output
    assert "WARNING: 1 images with references have no caption" in output
    captioner("report", out)
    page = (out / "report.html").read_text()
    assert "Nothing is known of it" in page
    assert "Its weights are real" not in page
    assert "its file is not known" in page  # and not what lies here under its name
    theirs.write_text("\n".join(lines))
    assert "not empty" in captioner(*command, status=2).output
    shutil.rmtree(out)
    captioner(*command)
    ours, found = (json.loads((at / "metrics.json").read_text()) for at in (finished_run, out))
    for name in ("images", "errors", "all_references", "cider", "rouge_l", "distinct_captions"):
        assert found[name] == pytest.approx(ours[name])
    compared = captioner("compare", finished_run, out, "--out", tmp_path / "c.html").output
    assert "B's tower: whatever made" in compared
    assert "the same" not in captioner("compare", out, out, "--out", tmp_path / "c.html").output
    theirs.write_text("\n".join([*lines, lines[0]]))
    shutil.rmtree(out)
    assert "has two captions" in captioner(*command, status=2).output
    theirs.write_text('{"image": "nobody.png", "caption": "a"}')
    assert "`nobody.png` has no references" in captioner(*command, status=2).output
    theirs.write_text("")
    assert f"{theirs}: no caption in it" in captioner(*command, status=2).output
    assert not (out / "metrics.json").exists()
    # Another file may be the right one; and where it was killed, the same command goes on.
    theirs.write_text("\n".join(lines[1:]))
    captioner(*command)
    (out / "metrics.json").unlink()
    other = captioner(*command, "--set", "score.resamples=200", status=2).output
    assert "not empty" in other  # what stands there is of another command
    captioner(*command)
    status = captioner("status", out).output
    assert "failed: caption: 1 no caption in the file" in status
    assert status.endswith("next: nothing is left to do\n")


def test_missing_java_is_told_before_a_run_begins(
    captioner: Cli, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    refused = captioner("run", small_config, "--set", "score.also=[meteor]", status=2)
    assert "no `java` on the PATH" in refused.output
    assert not (tmp_path / "run" / "manifest").exists()


def test_two_runs_are_compared(
    captioner: Cli, finished_run: Path, short_run: Path, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "compare.html"
    output = captioner("compare", finished_run, short_run, "--out", page).output
    assert "search.max_words: 16 in A, 3 in B" in output
    assert re.search(r"BLEU-1 +\d\.\d{4} +\d\.\d{4} +-\d\.\d{4} .* real", output)
    assert "B's tower: the same" in output
    assert "120 images" in output
    assert "Better in A" in page.read_text()
    shutil.rmtree(short_run / "scores")
    refused = captioner("compare", short_run, finished_run, status=2)
    assert "not scored; run `captioner score` there first" in refused.output
