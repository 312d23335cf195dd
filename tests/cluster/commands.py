"""Command lines in files and pages, held against the command line that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
from ray.scripts.scripts import cli as ray_main

from captioner import configuration
from jobs.cli import main

# What the README has in capitals, and what shells put in, stand for something.
_NAMES = re.compile(r"\$\{?\w+\}?|\bYOUR-[\w-]+")


def in_text(text: str) -> Iterator[str]:
    """What stands after ``captioner`` in lines of shell: of a script, its comments, an indented
    block; and in code of running text. Lines that end in a backslash go on."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        is_shell = re.match(r" {4}|#   |\S+ \S*captioner |captioner ", line)
        # Theirs is a namespace of that name.
        if is_shell and not re.match(r"\s*(kubectl|helm|docker) ", line):
            yield from re.findall(r"(?:^|[\s;/])captioner(?:\.sbatch)? +((?!import )[a-z].*)", line)
    yield from re.findall(r"`captioner ([^`]+)`", text)


def of_ray(text: str) -> list[str]:
    """What stands after ``ray`` in the lines of indented blocks."""
    return re.findall(r"^ {4}(?:\w+=\S+ )*ray ([a-z].*)", text, re.MULTILINE)


def check(line: str) -> list[str]:
    """What is wrong with the arguments of a captioner command; none: it would be understood."""
    words = _words(line)
    words = words[: words.index("...")] if "..." in words else words
    if words[0] == "submit":  # passes on what follows its own options
        first = next(
            number for number, word in enumerate(words) if word in main.commands and number
        )
        if wrong := check(shlex.join(words[first:])):
            return wrong
        words = words[: first + 1]
    wrong, values = _parse(words, main)
    known = configuration.keys()
    keys = [override.partition("=")[0] for override in values.get("overrides") or []]
    wrong += [f"{key} is no key" for key in keys if key not in known]
    return [f"captioner {line}: {what}" for what in wrong]


def check_ray(line: str) -> list[str]:
    """The same of a command of Ray's own."""
    wrong, _ = _parse(_words(line), ray_main)
    return [f"ray {line}: {what}" for what in wrong]


def _words(line: str) -> list[str]:
    words = shlex.split(_NAMES.sub("some", line), comments=True)
    for stop in ("&&", "|", ";", ">", "&"):
        words = words[: words.index(stop)] if stop in words else words
    return words


def _parse(words: list[str], command: click.Command) -> tuple[list[str], dict[str, Any]]:
    """What is wrong, and the values of the command's options."""
    while isinstance(command, click.Group) and words:
        try:
            _, words, _ = command.make_parser(click.Context(command)).parse_args(list(words))
        except click.UsageError as error:
            return [error.message], {}
        if not words or words == ["..."]:
            return [], {}
        name, *words = words
        found = command.commands.get(name)
        if found is None:
            return [f"there is no `{name}`"], {}
        command = found
    parser = command.make_parser(click.Context(command))
    try:
        values, _, _ = parser.parse_args(list(words))
    except click.UsageError as error:
        return [error.message], {}
    return [], values
