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

from captioner import features, parquet_dir, report, storage
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
    rows = parquet_dir.read(config.at("captions"))
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
    return config.model_copy(update={"report": Report(gallery=30, attention=0)})


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


def counted(page: Any, text: str, pager: str = "found") -> None:
    """What a pager tells a screen reader. The page's own policy forbids to wait by a script."""
    told = page.locator(f"#{pager}-pager").get_by_role("status")
    sync_api.expect(told).to_have_text(re.compile(f"^{re.escape(text)}"))
    assert told.get_attribute("aria-live") == "polite"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def gallery(page: Any) -> list[str]:
    """The images whose cards can be seen, in order."""
    found: list[str] = page.locator("#cards .card:visible .id").all_inner_texts()
    return found


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
    counted(page, "Images found: 100,000; page 1 of 4,000")
    assert set(column(page, 2)) == {"0.00"}
    assert button(page, "Previous page of images").is_disabled()
    first = column(page, 6)
    button(page, "Next page of images").focus()
    page.keyboard.press("Enter")
    counted(page, "Images found: 100,000; page 2 of 4,000")
    assert not set(first) & set(column(page, 6))
    button(page, "Previous page of images").click()
    assert column(page, 6) == first


def test_the_gallery_turns_its_pages_from_the_keyboard(page: Any) -> None:
    before = button(page, "Previous page of pictures")
    after = button(page, "Next page of pictures")
    counted(page, "Pictures found: 30; page 1 of 3", "cards")
    assert before.is_disabled()
    first = gallery(page)
    assert len(first) == 12
    after.focus()
    page.keyboard.press("Enter")
    counted(page, "Pictures found: 30; page 2 of 3", "cards")
    assert before.is_enabled()
    assert after.is_enabled()
    second = gallery(page)
    sync_api.expect(after).to_be_focused()
    page.keyboard.press("Enter")
    counted(page, "Pictures found: 30; page 3 of 3", "cards")
    assert after.is_disabled()
    sync_api.expect(before).to_be_focused()  # the keyboard is not sent to the top of the page
    third = gallery(page)
    assert len({*first, *second, *third}) == 30
    assert [len(second), len(third)] == [12, 6]
    page.keyboard.press("Enter")
    counted(page, "Pictures found: 30; page 2 of 3", "cards")
    assert gallery(page) == second
    before.click()
    assert gallery(page) == first
    counted(page, "Images found: 100,000; page 1 of 4,000")  # the table has pages of its own


def test_a_page_of_the_gallery_is_seen_from_its_start(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 740})
    page.locator("#cards .card").last.scroll_into_view_if_needed()
    after = button(page, "Next page of pictures")
    after.click()
    sync_api.expect(page.locator("#cards .card").first).to_be_in_viewport(ratio=0.5)
    sync_api.expect(after).to_be_in_viewport()


def test_the_gallery_is_found_and_sorted_as_the_table(page: Any) -> None:
    scores = [text.split()[-1] for text in page.locator("#cards .score").all_inner_texts()]
    assert scores == sorted(scores)
    name = gallery(page)[3]
    button(page, "Next page of pictures").click()
    page.get_by_label("Search").fill(name)
    counted(page, "Pictures found: 1; page 1 of 1", "cards")
    assert gallery(page) == [name]
    assert column(page, 6) == [name]
    shown = page.locator("#cards .caption").inner_text()
    assert captions(page) == [shown]  # the card of the row, and not of another
    assert button(page, "Next page of pictures").is_disabled()
    page.locator("#finder [name=state]").select_option("failed")
    counted(page, "Pictures found: 0; page 1 of 1", "cards")
    assert gallery(page) == []
    button(page, "Clear").click()
    counted(page, "Pictures found: 30; page 1 of 3", "cards")
    assert gallery(page)[3] == name


def test_without_javascript_every_card_is_there(browser: Any, url: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"file://{url}")
    assert len(set(gallery(page))) == 30
    for control in ("button", "#finder"):
        assert page.locator(f"{control}:visible").count() == 0  # what would do nothing
    assert "The table needs JavaScript" in page.locator("#captions").inner_text()
    page.close()


def test_the_search_box_finds_words_of_captions_and_names(page: Any) -> None:
    box = page.get_by_label("Search")
    box.fill("17 Dog")
    sync_api.expect(page.locator("#found tr").first).to_contain_text("17")
    assert all("17" in row for row in page.locator("#found tr").all_inner_texts())
    assert all("dog" in text for text in captions(page))
    box.fill("012345.jpg")
    counted(page, "Images found: 1; page 1 of 1")
    assert button(page, "Next page of images").is_disabled()
    box.fill("Truncated 1000")  # a reason, and a part of a name
    sync_api.expect(page.locator("#found tr").first).to_contain_text("truncated")
    assert set(captions(page)) == {"OSError: truncated"}
    assert all("1000" in name for name in column(page, 6))
    box.fill("no such words")
    counted(page, "Images found: 0; page 1 of 1")
    button(page, "Clear").click()
    counted(page, "Images found: 100,000;")


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
    counted(page, "Images found: 100; page 1 of 4")
    assert set(captions(page)) == {"OSError: truncated"}
    form.get_by_role("button", name="Clear").click()
    form.locator("[name=order]").select_option("confidence down")
    first_is(page, 4, "1.00")


def test_captions_that_were_not_scored_are_sorted_and_filtered_by_confidence(
    browser: Any, run: JobConfig, tmp_path: Path
) -> None:
    rows = parquet_dir.read(run.at("captions")).slice(0, 1500)
    for name in ("references", "bleu_4", "bleu_statistics"):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.nulls(len(rows), rows.schema.field(name).type))
    encoder = features.read_identity(run.at("features"))
    rows = rows.replace_schema_metadata(encoder.metadata())
    config = run.model_copy(update={"run": str(tmp_path)})
    storage.write_table(config.at("captions", "one.parquet"), rows)
    shutil.copytree(run.at("manifest"), config.at("manifest"))
    with opened(browser, report.write(config)) as page:
        counted(page, "Images found: 1,500;")
        shown = [float(value) for value in column(page, 4) if value]
        assert shown == sorted(shown)
        assert shown[0] < 0.02
        page.locator("#finder [name=low]").fill("0.9")
        first_is(page, 4, "0.90")
        assert all(float(value) >= 0.9 for value in column(page, 4))


def test_a_caption_with_a_script_is_shown_as_text(page: Any) -> None:
    page.get_by_label("Search").fill("<script>")
    counted(page, "Images found: 1;")
    assert captions(page) == [SCRIPT]
    assert column(page, 6) == [NASTY_ID]
    assert page.locator("#found script").count() == 0


def test_a_narrow_screen_does_not_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    hidden = "[...document.querySelectorAll('.panel')].map(e => e.scrollWidth - e.clientWidth)"
    assert set(page.evaluate(hidden)) == {0}


def test_every_control_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll('#finder input, #finder select, button')]
           .filter((e) => !(e.labels && e.labels.length) && !e.textContent.trim()).length"""
    )
    assert nameless == 0


def test_screenshots(page: Any, tmp_path: Path) -> None:
    """To look at: CAPTIONER_SCREENSHOTS names where to keep them."""
    folder = Path(os.environ.get("CAPTIONER_SCREENSHOTS", tmp_path))
    for section in ("gallery", "captions"):
        page.locator(f"#{section}").screenshot(path=folder / f"{section}.png")
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("#captions").scroll_into_view_if_needed()
    page.screenshot(path=folder / "narrow.png")
    assert (folder / "captions.png").stat().st_size > 10_000
