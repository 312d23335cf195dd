"""What must not be read by others, taken out of text: passwords and signatures of URLs, and the
values of secret environment variables.

A signed URL is a password with a date: whoever reads it in a log can fetch what it names. Nothing
here can find a secret that looks like any other word; what is known to be one is never shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

HIDDEN = "[redacted]"

# A user's name may be an address of mail.
_PASSWORD = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#\"'<>:]*:[^\s/\"'<>]*@", re.I)
# All of a query, for what is secret in it has a name of each service's own. Only on the web: the
# name of an object may have a question mark, and so has a glob.
_QUERY = re.compile(
    r"(?P<url>\bhttps?://[^\s?\"'<>`]*)\?[^\s\"'<>`]*?(?P<end>[).,:;\]]*(?=[\s\"'<>`]|$))", re.I
)
# In a query without its URL, such as a client tells what it has asked for.
_PARAMETER = re.compile(
    r"(?P<name>\b(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|"
    r"AWSAccessKeyId|GoogleAccessId|Key-Pair-Id|sig|token|access_token|api_?key|password|secret))"
    r"(?P<equals>=|%3D)[^&\s\"'<>`,;)]+?(?=[).,:;]*(?:[&\s\"'<>`,;)]|$))",
    re.I,
)
# After its header's name whatever it is; without that, only what is no word of a caption.
_BEARER = re.compile(
    r"(?P<scheme>(?i:authorization)['\"]?\s*[:=]\s*['\"]?(?i:bearer|basic)\s+"
    r"|\b(?i:bearer|basic)\s+(?=[\w.~+/=-]*(?:[\d=+]|[a-z][A-Z])))[\w.~+/=-]{8,}"
)

_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|API_KEY|ACCOUNT_KEY|STORAGE_KEY|CONNECTION_STRING|CREDENTIAL"
)
_WHERE_IT_IS = re.compile(r"_(PATH|FILE|DIR|URI|URL|MODE|ENDPOINT|ID)$")
_SHORTEST = 8  # shorter values are words, such as true

# Of signed URLs. The short ones belong to a shared access signature (Azure) and mean something
# else where there is none.
_SIGNING = re.compile(r"x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|sig|key-pair-id")
_BESIDE = re.compile(r"expires|policy|s[eprtsv]|srt|sip|spr|sk(oid|tid|t|e|s|v)")
_TOKENS = re.compile(r"token|access_token|password|secret|api_?key")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without passwords and queries of URLs, signatures, and ``secrets``."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _PASSWORD.sub(rf"\g<scheme>{HIDDEN}@", text)
        text = _QUERY.sub(rf"\g<url>?{HIDDEN}\g<end>", text)
    text = _PARAMETER.sub(rf"\g<name>\g<equals>{HIDDEN}", text)
    return _BEARER.sub(rf"\g<scheme>{HIDDEN}", text)


def reason(error: Exception) -> str:
    """Why something was not done, as a row or a page tells it."""
    return clean(f"{type(error).__name__}: {error}")[:200]


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """The values of variables whose names say that they are secret, such as
    ``AWS_SECRET_ACCESS_KEY``, ``RAY_AUTH_TOKEN`` and ``HF_TOKEN``."""
    return {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST
        and _SECRET_NAME.search(name.upper())
        and not _WHERE_IT_IS.search(name.upper())
    }


def clean(text: str) -> str:
    """``redact`` with the secrets of this process's environment."""
    return redact(text, secrets_of(os.environ))


def has_password(url: str) -> bool:
    """Whether there is a ``scheme://user:password@host`` in it; chains have more before that."""
    return _PASSWORD.search(url) is not None


def unsigned(uri: str) -> str:
    """A URI as it may be shown, and without what changes each time that it is signed; other
    parameters stay, for they may be what tells two images apart."""
    uri = _PASSWORD.sub(r"\g<scheme>", uri)
    if not uri.lower().startswith(("http://", "https://")) or "?" not in uri:
        return uri
    place, _, query = uri.partition("?")
    names = {_name(part) for part in query.split("&")}
    signed = any(_SIGNING.fullmatch(name) for name in names)
    kept = [
        part
        for part in query.split("&")
        if not _SIGNING.fullmatch(_name(part))
        and not _TOKENS.fullmatch(_name(part))
        and not (signed and _BESIDE.fullmatch(_name(part)))
    ]
    return f"{place}?{'&'.join(kept)}" if kept else place


def _name(parameter: str) -> str:
    return unquote(parameter.partition("=")[0]).lower()
