from __future__ import annotations

import pytest

from captioner import configuration, redaction
from captioner.errors import InputError

AWS = (
    "https://bucket.s3.amazonaws.com/cat.jpg?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIDEXAMPLE%2F20261125&X-Amz-Date=20261125T000000Z&X-Amz-Expires=900"
    "&X-Amz-SignedHeaders=host&X-Amz-Signature=deadbeef01"
)
AZURE = "https://a.blob.core.windows.net/c/cat.jpg?sv=2024-01-01&se=2026-12-01&sr=b&sp=r&sig=dead%2Bbeef"
OLD_AWS = (
    "http://b.s3.amazonaws.com/cat.jpg?AWSAccessKeyId=AKIDEXAMPLE&Expires=1&Signature=deadbeef"
)
SIGNED = [AWS, AZURE, OLD_AWS]
SECRETS = ("deadbeef", "dead%2Bbeef", "AKIDEXAMPLE")


@pytest.mark.parametrize("url", SIGNED)
@pytest.mark.parametrize("around", ["{}", "<{}>", "url='{}', status=403", "{}: no answer for 10 s"])
def test_a_signed_url_loses_its_query_wherever_it_stands(url: str, around: str) -> None:
    found = redaction.redact(around.format(url))
    assert not any(secret in found for secret in SECRETS)
    assert found == around.format(url.partition("?")[0] + "?[redacted]")


def test_what_is_cut_or_alone_is_found_too() -> None:
    for text in (AWS[:150], f"GET /cat.jpg?{AWS.partition('?')[2]}", "sig=deadbeef", f"{OLD_AWS},"):
        assert not any(secret in redaction.redact(text) for secret in SECRETS)


def test_a_password_of_a_url_is_hidden_and_a_user_is_not() -> None:
    assert redaction.redact("sftp://me:pa:ss@host/x") == "sftp://[redacted]@host/x"
    assert redaction.redact("https://me:p@ss@host/x failed") == "https://[redacted]@host/x failed"
    assert redaction.redact("sftp://me@x.com:pass@host/x") == "sftp://[redacted]@host/x"
    assert redaction.redact("sftp://me@host/x") == "sftp://me@host/x"


def test_other_text_stays_as_it_is() -> None:
    for text in (
        "s3://bucket/shard-?.tar: no images",
        "extract: 1,000 rows, 12 s; why? a=b",
        "train.learning_rate: unknown key",
        "--set encoder.tokens=false",
        "image 3: is it a cat? https://host/cat.jpg",
        "10:30:00 user@host:/data",
    ):
        assert redaction.redact(text) == text


def test_values_of_secret_variables_are_hidden() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
        "HF_TOKEN": "hf_abcdefghij",
        "RAY_AUTH_TOKEN": "0123456789abcdef",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountKey=verysecret",
        "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray-token",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": "/home/someone",
    }
    secrets = redaction.secrets_of(environment)
    assert secrets == {environment[name] for name in list(environment)[:4]}
    said = redaction.redact(f"cannot use {' '.join(environment.values())}", secrets)
    assert said == (
        "cannot use [redacted] [redacted] [redacted] [redacted] /run/secrets/ray-token false "
        "/home/someone"
    )
    for secret in ("Zm9vYmFyYmF6", "abcdefghijkl"):
        assert secret not in redaction.redact(f"Authorization: Bearer {secret}")
        assert secret not in redaction.redact(f"{{'authorization': 'Basic {secret}'}}")
    assert "Zm9vYmFyYmF6" not in redaction.redact("it was sent with bearer Zm9vYmFyYmF6")
    assert "abcdefg2hijk" not in redaction.redact("it was sent with bearer abcdefg2hijk")
    for caption in ("a basic bathroom with a toilet", "the flag bearer standing in front"):
        assert redaction.redact(caption) == caption


@pytest.mark.parametrize("url", SIGNED)
def test_signed_again_it_is_the_same_image(url: str) -> None:
    assert redaction.unsigned(url) == url.partition("?")[0]


def test_parameters_that_are_no_signature_stay() -> None:
    assert redaction.unsigned("https://host/image?id=3&sp=1") == "https://host/image?id=3&sp=1"
    assert redaction.unsigned("https://host/image?id=3&sig=x&sp=r") == "https://host/image?id=3"
    assert redaction.unsigned("https://host/i?id=3&token=abc") == "https://host/i?id=3"
    assert redaction.unsigned("https://me:secret@host/i") == "https://host/i"
    assert redaction.unsigned("https://me@x.com:secret@host/i") == "https://host/i"
    assert redaction.unsigned("s3://bucket/what?.jpg") == "s3://bucket/what?.jpg"


def test_an_error_has_no_secret_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    error = InputError(f"{AWS}: 403 with hf_abcdefghij")
    assert str(error) == "https://bucket.s3.amazonaws.com/cat.jpg?[redacted]: 403 with [redacted]"


def test_a_configuration_with_a_password_in_a_url_is_refused() -> None:
    values = {"name": "x", "run": "/run", "source": {"images": "sftp://me:secret@host/photos"}}
    with pytest.raises(InputError, match="fsspec's own configuration") as refused:
        configuration.parse(values, "x.yaml")
    assert "source.images" in str(refused.value)
    assert "secret@" not in str(refused.value)
    values["source"] = {"images": AWS}  # signed, it is what reads the source
    assert configuration.parse(values, "x.yaml").source.images == AWS


@pytest.mark.parametrize(
    "values",
    [
        {"source": {"images": "sftp://me@mail.com:secret@host/photos"}},
        {"source": {"images": "simplecache::sftp://me:secret@host/photos"}},
        {"encoder": {"model": "local-dir:s3://me:secret@bucket/tower"}},
        {"encoder": {"pretrained": "https://me:secret@host/weights.pt"}},
        {"decoder": {"type": "gpt2", "attention": "none", "pretrained": "s3://a:secret@bucket/x"}},
    ],
)
def test_a_password_is_refused_wherever_a_url_may_stand(values: dict[str, dict[str, str]]) -> None:
    values = {"source": {"images": "/photos"}, **values}
    with pytest.raises(InputError, match="a password in a URL") as refused:
        configuration.parse({"name": "x", "run": "/run", **values}, "x.yaml")
    assert "secret@" not in str(refused.value)
