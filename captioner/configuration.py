"""Configurations as YAML: read, overridden by ``key=value``, unknown keys refused, written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from captioner import storage
from captioner.config import JobConfig, Search, Section
from captioner.errors import InputError

S = TypeVar("S", bound=Section)

# The last two of a date that does not exist, and of brackets too deep.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; YAML lets the last one win without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"`{key.value}` stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def load(url: str, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a YAML configuration and apply ``key.path=value`` overrides.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    return parse(read(url, overrides), url)


def read(url: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML configuration, as they stand there, with overrides.

    Raises:
        InputError: the file is missing or not YAML.
    """
    if not storage.exists(url):
        raise InputError(f"{url}: no such configuration file")
    try:
        values = yaml.load(storage.read_text(url), _Loader) or {}
    except IsADirectoryError:
        raise InputError(
            f"{url}: a directory without a config.yaml, so neither a configuration nor a run. To "
            "caption the images in it, give --model and --out"
        ) from None
    except (*_NOT_YAML, OSError) as error:
        raise InputError(f"{url}: not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{url}: expected keys and values, found {type(values).__name__}")
    apply(values, overrides)
    return values


def refuse(overrides: Sequence[str], given: Mapping[str, str]) -> None:
    """
    Args:
        given: keys that the command has another way to say, and that way.

    Raises:
        InputError: an override says one of them again.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        for other, way in given.items():
            if key and key in (other, other.rpartition(".")[0]):
                raise InputError(f"--set {override}: {other} is {way} here")


def parse(values: dict[str, Any], origin: str) -> JobConfig:
    """Validate plain values. ``origin`` stands in front of every error."""
    return _validated(JobConfig, values, origin)


def parse_search(values: dict[str, Any], origin: str) -> Search:
    """Validate the options of a search alone."""
    return _validated(Search, values, origin, "search")


def _validated(kind: type[S], values: dict[str, Any], origin: str, *section: str) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [{**each, "loc": (*section, *each["loc"])} for each in error.errors()]
        lines = [f"{origin}: {_describe(problem)}" for problem in problems]
        raise InputError("\n".join(lines)) from None


def dump(config: JobConfig) -> str:
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def apply(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set each ``key.path=value`` in plain values, in place.

    Raises:
        InputError: one is not of that form.
    """
    for override in overrides:
        _apply(values, override)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, such as train.epochs=3")
    *parents, leaf = key.strip().split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a section")
    target[leaf] = _plain(text)


def _plain(text: str) -> Any:
    """A value as YAML has it; but what is text anyway stays as it is: paths may have ``#``, and
    names may look like dates."""
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML:
        return text
    is_quoted = text.strip()[:1] in ("'", '"')
    return text if isinstance(value, str | date) and not is_quoted else value


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = sorted(keys())
        others = [other for other in known if not key.startswith(f"{other}.")]  # not its section
        nearest = difflib.get_close_matches(key, others, n=1, cutoff=0.7)
        hint = f"; did you mean {nearest[0]}?" if nearest else _section_hint(location, known)
        return f"{key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{key}: required, but not given"
    message: str = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if isinstance(problem["input"], dict):  # of a section what does not go together
        return f"{key}: {message}"
    given = problem["input"]
    is_list = problem["type"] == "list_type" and isinstance(given, str) and given[:1] == "["
    hint = '; what has a * has to stand in quotes: ["*.jpg"]' if is_list and "*" in given else ""
    return f"{key}: {message} (got {given!r}){hint}"


def _section_hint(location: Sequence[str], known: Iterable[str]) -> str:
    depth = len(location)
    siblings = {
        ".".join(key.split(".")[:depth])
        for key in known
        if key.split(".")[: depth - 1] == list(location[:-1])
    }
    return f"; known keys here: {', '.join(sorted(siblings))}"


def keys(section: type[BaseModel] = JobConfig) -> list[str]:
    """All keys that there are: ``train``, ``train.epochs`` and so on."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        found.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [f"{name}.{inner}" for inner in keys(field.annotation)]
    return found
