from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli import main

SIGNED = "https://host/x.yaml?X-Amz-Signature=deadbeef"
# What a process may write to its streams without asking anyone, and how it may end.
NOISE = """
import os, sys, warnings
from jobs import logs
logs.configure("json")
print("printed")
print('{"own": 1}')
print('{"asctime": "2026-11-25 03:41:04", "levelname": "ERROR", "message": "Ray says"}')
os.write(2, b"[I 1] a line of C++ about https://host/x?sig=deadbeef")
os.write(2, b" in two parts\\n")
with logs.about(run="/run", step="extract"):
    logs.say("two\\nlines of token=deadbeef")
logs.note("meanwhile")
warnings.warn("a warning")
sys.stdout.flush()
END
"""


def python(code: str, status: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Standard output and standard error of a process, every line read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    assert "deadbeef" not in done.stdout + done.stderr
    out, err = (
        [json.loads(line) for line in text.splitlines()] for text in (done.stdout, done.stderr)
    )
    return out, err


@pytest.mark.parametrize(("end", "status"), [("", 0), ("os.abort()", -6)])
def test_every_line_is_json_whoever_wrote_it_and_however_it_ends(end: str, status: int) -> None:
    out, err = python(NOISE.replace("END", end), status)
    ours = next(line for line in out if line.get("message", "").startswith("two"))
    assert ours["message"] == "two\nlines of token=[redacted]"
    assert (ours["level"], ours["run"], ours["step"]) == ("INFO", "/run", "extract")
    assert {"time", "node"} <= set(ours)
    assert any(
        (line["logger"], line["message"]) == ("stdout", "printed")
        for line in out
        if "logger" in line
    )
    assert {"own": 1} in out
    assert [line["level"] for line in out if line.get("message") == "Ray says"] == ["ERROR"]
    said = {line["message"]: line for line in err}
    assert "[I 1] a line of C++ about https://host/x?[redacted] in two parts" in said
    assert "run" not in said["meanwhile"]
    assert any("a warning" in message for message in said)


def test_an_exception_is_one_line_without_secrets() -> None:
    end = "raise RuntimeError('no answer of https://host/x?sig=deadbeef')"
    _, err = python(NOISE.replace("END", end), 1)
    line = next(line for line in err if line["level"] == "CRITICAL")
    assert line["message"] == "RuntimeError: no answer of https://host/x?[redacted]"
    assert "Traceback" in line["exception"]


def test_a_traceback_for_people_has_no_secrets_either() -> None:
    code = (
        "from jobs import logs; logs.configure('plain')\n"
        "raise RuntimeError('no answer of https://host/x?' + 'sig=' + 'deadbeef')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: no answer of https://host/x?[redacted]\n")
    assert done.stderr.startswith("Traceback")


def test_errors_are_json_by_option_and_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, environment in (
        (["--log-format", "json", "run", SIGNED], {}),
        (["run", SIGNED], {"CAPTIONER_LOG_FORMAT": "json"}),
    ):
        result = CliRunner().invoke(main, arguments, env=environment)
        (line,) = map(json.loads, result.output.splitlines())
        assert result.exit_code == 2
        assert line["level"] == "ERROR"
        assert "deadbeef" not in result.output
    result = CliRunner().invoke(main, ["--log-format", "json", "extract"])
    assert (result.exit_code, json.loads(result.output)["level"]) == (2, "ERROR")


def test_plain_errors_have_no_secrets() -> None:
    result = CliRunner().invoke(main, ["index", "/nowhere.yaml?sig=deadbeef"])
    assert result.output == "Error: /nowhere.yaml?sig=[redacted]: no such configuration file\n"


@pytest.mark.parametrize("moving", [False, True])
def test_a_standard_error_that_takes_nothing_any_more_fails_no_job(moving: bool) -> None:
    """As of a terminal that has gone, or a log file on a full disk."""
    say = "logs.in_place('half', False)" if moving else "logs.note('half')"
    code = f"from jobs import logs; logs.configure('plain'); {say}; {say}; logs.say('done')"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "done\n")
