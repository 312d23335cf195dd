"""A page as its reader meets it."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

from PIL import Image

from captioner import storage


class Page(HTMLParser):
    """A page as its reader meets it: tags with attributes, and text, by section."""

    VOID = frozenset({"img", "meta", "br", "input"})

    def __init__(self, url: str) -> None:
        super().__init__()
        self.source = storage.read_text(url)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}  # text
        self.pictures: dict[str, list[dict[str, str]]] = {}  # attributes of <img>
        self.open: list[str] = []
        self.section = ""
        self.feed(self.source)
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"]
        if tag == "img":
            self.pictures.setdefault(self.section, []).append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            words = f"{self.sections.get(self.section, '')} {data}".split()
            self.sections[self.section] = " ".join(words)

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())

    def ids(self, section: str) -> list[str]:
        """The images of a section, in order."""
        pictures = self.pictures.get(section, [])
        return [
            picture["alt"].removeprefix("Picture ")
            for picture in pictures
            if picture["alt"].startswith("Picture ")
        ]


def image_of(picture: dict[str, str]) -> Image.Image:
    encoded = picture["src"].removeprefix("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
