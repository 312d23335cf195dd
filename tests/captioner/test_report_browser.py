"""The report in a real browser: Chromium, where it is installed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioner import features, manifest, report, storage
from captioner.config import JobConfig, Report
from tests.runs import NASTY_ID, SCRIPT, build_run

ROWS = 100_000
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """A hundred thousand captions, one in a thousand of them an error, one with a script."""
    config = build_run(tmp_path_factory.mktemp("large"))
    rows = manifest.read(config.at("captions"))
    template = rows.filter(pa.array([i == NASTY_ID for i in rows["image_id"].to_pylist()]))
    things = [f"a {size} {thing}" for size in range(500) for thing in ("dog", "cat", "house")]
    many = pa.Table.from_pylist(
        [
            {
                "image_id": f"folder {n % 100}/{n:06}.jpg",
                "serial": n,
                "uri": f"/nowhere/{n}.jpg",
                "caption": None if n % 1000 == 0 else things[n % len(things)] + " on" * (n % 7),
                "bleu_4": None if n % 1000 == 0 else (n * 7919 % 1000) / 1000,
                "confidence": (n * 104729 % 1000) / 1000,
                "error": "OSError: truncated" if n % 1000 == 0 else None,
            }
            for n in range(ROWS - len(template))
        ],
        schema=rows.schema,
    )
    storage.remove(config.at("captions"))
    storage.write_table(config.at("captions", "one.parquet"), pa.concat_tables([many, template]))
    # The features of those images are not there to draw maps from.
    return config.model_copy(update={"report": Report(attention=0)})


@pytest.fixture(scope="module")
def url(run: JobConfig) -> str:
    return report.write(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as page:
        yield page


@contextlib.contextmanager
def opened(browser: Any, url: str) -> Iterator[Any]:
    """The page, which must say nothing on the console and ask for nothing."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if "file:" not in asked.url
            and not asked.url.startswith("data:") else None)  # fmt: skip
    page.goto(f"file://{url}")
    page.wait_for_selector("#found tr")
    yield page
    page.close()
    assert wrong == []


def counted(page: Any, text: str) -> None:
    """The page's own policy forbids to wait by a script."""
    sync_api.expect(page.locator("#counted")).to_have_text(re.compile(f"^{re.escape(text)}"))


def first_is(page: Any, number: int, text: str) -> None:
    cell = page.locator(f"#found tr:first-child td:nth-child({number})")
    sync_api.expect(cell).to_have_text(text)


def captions(page: Any) -> list[str]:
    found: list[str] = page.locator("#found th").all_inner_texts()
    return found


def column(page: Any, number: int) -> list[str]:
    found: list[str] = page.locator(f"#found td:nth-child({number})").all_inner_texts()
    return found


def test_a_hundred_thousand_captions_are_a_few_megabytes(url: str) -> None:
    assert os.path.getsize(url) < 4_000_000


def test_the_worst_come_first_and_pages_turn(page: Any) -> None:
    counted(page, "100,000 found; page 1 of 4,000")
    assert set(column(page, 2)) == {"0.00"}
    assert page.locator("#before").is_disabled()
    first = column(page, 6)
    page.locator("#after").focus()
    page.keyboard.press("Enter")
    counted(page, "100,000 found; page 2 of 4,000")
    assert not set(first) & set(column(page, 6))
    page.click("#before")
    assert column(page, 6) == first


def test_the_search_box_finds_words_of_captions_and_names(page: Any) -> None:
    box = page.get_by_label("Search")
    box.fill("17 Dog")
    sync_api.expect(page.locator("#found tr").first).to_contain_text("17")
    assert all("17" in row for row in page.locator("#found tr").all_inner_texts())
    assert all("dog" in text for text in captions(page))
    box.fill("012345.jpg")
    counted(page, "1 found; page 1 of 1")
    assert page.locator("#after").is_disabled()
    box.fill("no such words")
    counted(page, "0 found")
    page.get_by_role("button", name="Clear").click()
    counted(page, "100,000 found")


def test_captions_are_filtered_by_score_length_and_error(page: Any) -> None:
    form = page.locator("#finder")
    form.locator("[name=low]").fill("0.5")
    form.locator("[name=high]").fill("0.52")
    form.locator("[name=shortest]").fill("9")
    first_is(page, 2, "0.50")
    first_is(page, 5, "9")
    assert {float(score) for score in column(page, 2)} <= {0.5, 0.51, 0.52}
    assert {int(words) for words in column(page, 5)} == {9}
    form.get_by_role("button", name="Clear").click()
    form.locator("[name=state]").select_option("failed")
    counted(page, "100 found; page 1 of 4")
    assert set(captions(page)) == {"OSError: truncated"}
    form.get_by_role("button", name="Clear").click()
    form.locator("[name=order]").select_option("confidence down")
    first_is(page, 4, "1.00")


def test_captions_that_were_not_scored_are_sorted_and_filtered_by_confidence(
    browser: Any, run: JobConfig, tmp_path: Path
) -> None:
    rows = manifest.read(run.at("captions")).slice(0, 1500)
    for name in ("references", "bleu_4", "bleu_statistics"):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.nulls(len(rows), rows.schema.field(name).type))
    encoder = features.read_identity(run.at("features"))
    rows = rows.replace_schema_metadata(encoder.metadata())
    config = run.model_copy(update={"run": str(tmp_path)})
    storage.write_table(config.at("captions", "one.parquet"), rows)
    shutil.copytree(run.at("manifest"), config.at("manifest"))
    with opened(browser, report.write(config)) as page:
        counted(page, "1,500 found")
        shown = [float(value) for value in column(page, 4) if value]
        assert shown == sorted(shown)
        assert shown[0] < 0.02
        page.locator("#finder [name=low]").fill("0.9")
        first_is(page, 4, "0.90")
        assert all(float(value) >= 0.9 for value in column(page, 4))


def test_a_caption_with_a_script_is_shown_as_text(page: Any) -> None:
    page.get_by_label("Search").fill("<script>")
    counted(page, "1 found")
    assert captions(page) == [SCRIPT]
    assert column(page, 6) == [NASTY_ID]
    assert page.locator("#found script").count() == 0


def test_a_narrow_screen_does_not_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_control_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll('#finder input, #finder select, button')]
           .filter((e) => !(e.labels && e.labels.length) && !e.textContent.trim()).length"""
    )
    assert nameless == 0


def test_screenshots(page: Any, tmp_path: Path) -> None:
    """To look at: CAPTIONER_SCREENSHOTS names where to keep them."""
    folder = Path(os.environ.get("CAPTIONER_SCREENSHOTS", tmp_path))
    page.locator("#captions").screenshot(path=folder / "table.png")
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("#captions").scroll_into_view_if_needed()
    page.screenshot(path=folder / "narrow.png")
    assert (folder / "table.png").stat().st_size > 10_000
