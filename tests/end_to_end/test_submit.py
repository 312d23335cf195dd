"""`captioner submit` against a real Ray head that asks for a token, as its users call it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from captioner import parquet_dir
from tests.conftest import write_config
from tests.head import TOKEN, Head, head

pytestmark = pytest.mark.slow

SECRETS = {"HF_TOKEN": "hf_secretofthetests", "AWS_SECRET_ACCESS_KEY": "awssecretofthetests"}
_REPORTED_S = 12  # Ray's workers report their metrics every ten seconds
SIGNATURE = "deadbeefdeadbeef"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head(tmp_path_factory.mktemp("head"), SECRETS) as started:
        yield started


@pytest.fixture(scope="module")
def finished(cluster: Head, scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose ``run`` a job of the cluster has taken through every stage, and what was
    said meanwhile."""
    directory = tmp_path_factory.mktemp("submitted")
    config = write_config(directory, scene_data)
    submit = ("--log-format", "json", "submit", "--address", cluster.address)
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(cluster.metrics, over, directory / "metrics.txt"), daemon=True
    )
    watcher.start()
    done = cluster.captioner(*submit, "run", config, "--set=train.epochs=1")
    time.sleep(_REPORTED_S)
    over.set()
    watcher.join()
    assert done.returncode == 0, done.stdout + done.stderr
    (directory / "out.txt").write_text(done.stdout)
    (directory / "err.txt").write_text(done.stderr)
    return directory


def _watch(url: str, over: threading.Event, into: Path) -> None:
    """As Prometheus does: read the metrics again and again."""
    while not over.wait(0.5):
        with contextlib.suppress(OSError):
            lines = urllib.request.urlopen(url, timeout=5).read().decode().splitlines()
            ours = [line for line in lines if line.startswith("ray_captioner_")]
            with into.open("a") as file:
                file.writelines(f"{line}\n" for line in ours)


def test_prometheus_sees_rows_as_they_are_done(finished: Path) -> None:
    lines = (finished / "metrics.txt").read_text().splitlines()
    rows = [line for line in lines if line.startswith("ray_captioner_rows_total{")]
    by_job = {
        job: max((float(line.split()[-1]) for line in rows if f'job="{job}"' in line), default=0)
        for job in ("extract", "caption")
    }
    assert by_job == {"extract": 120, "caption": 120}
    assert any(line.startswith("ray_captioner_busy_seconds_total{") for line in lines)
    assert any(line.startswith("ray_captioner_last_progress_timestamp_seconds{") for line in lines)


def test_a_run_on_the_cluster_is_followed_in_json(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "out.txt").read_text().splitlines()]
    lines += [json.loads(line) for line in (finished / "err.txt").read_text().splitlines()]
    assert all({"time", "level", "message", "node"} <= set(line) for line in lines)
    steps = [line for line in lines if line.get("step") and line["run"] == str(finished / "run")]
    said = {line["step"]: line["message"] for line in steps}
    assert list(said) == ["index", "extract", "train", "caption", "score", "report"]
    results = [line for line in steps if line["message"].startswith("extract: 120 rows")]
    assert len(results) == 1  # followed to the end, and nothing twice
    assert {"job_id", "node_id"} <= set(results[0])
    assert (finished / "run" / "report.html").exists()


def test_the_status_of_a_run_has_its_cost(cluster: Head, finished: Path) -> None:
    done = cluster.captioner("status", finished / "run", "--json")
    stages = json.loads(done.stdout)["stages"]
    assert [stage["state"] for stage in stages.values()] == ["done"] * 6
    for name in ("extract", "train", "caption"):
        cost = stages[name]["cost"]
        workers = cost["workers"]
        assert cost["commands"] == 1
        assert cost["cpu_seconds"] == pytest.approx(
            workers["count"] * workers["cpus"] * cost["seconds"], rel=0.05
        )
        assert cost["gpu_seconds"] == 0
    assert stages["train"]["trained_on"]["train"] > 0


def test_wrong_addresses_and_tokens_are_told_apart(
    cluster: Head, small_config: Path, tmp_path: Path
) -> None:
    def refused(address: str, **more: str) -> tuple[int, str]:
        done = cluster.captioner("submit", "--address", address, "index", small_config, **more)
        return done.returncode, done.stderr

    status, said = refused("http://127.0.0.1:1")
    assert (status, "no answer" in said) == (75, True)
    assert refused("127.0.0.1:8265")[0] == 2
    status, said = refused(cluster.address, RAY_AUTH_TOKEN="another" * 6)
    assert (status, "refuses this token" in said, "another" in said) == (2, True, False)
    status, said = refused(cluster.address, RAY_AUTH_MODE="disabled")
    assert (status, "asks for a token" in said) == (2, True)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    accepted = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(token)}
    sent = ("submit", "--address", cluster.address, "--no-wait", "report", small_config)
    assert cluster.captioner(*sent, **accepted).returncode == 0


def test_the_exit_status_of_the_job_is_passed_on(
    cluster: Head, finished: Path, small_config: Path
) -> None:
    submit = ("submit", "--address", cluster.address)
    nowhere = "--set=source.images=/nowhere-on-the-cluster"
    with cluster.started(*submit, "index", small_config, nowhere) as second:
        many = ("--set=cluster.encoders=1000", "--set=cluster.patience=0")
        done = cluster.captioner(*submit, "caption", finished / "run", *many)
        assert done.returncode == 4, done.stdout + done.stderr
        assert "the job needs 1000 workers" in done.stdout
        out, err = second.communicate(timeout=120)
    assert second.returncode == 2, out + err
    assert "/nowhere-on-the-cluster" in out


def test_who_stops_following_is_told_how_to_go_on(
    cluster: Head, finished: Path, tmp_path: Path
) -> None:
    """One job: sent, sent again, followed, left, stopped."""
    wait = ("--set=cluster.encoders=1000", "--set=cluster.patience=600")
    submit = ("submit", "--address", cluster.address, "--job-id", "nightly-1")
    job = ("caption", finished / "run", *wait)
    sent = cluster.captioner(*submit, "--no-wait", *job)
    assert (sent.returncode, sent.stdout) == (0, "nightly-1\n"), sent.stderr
    other = cluster.captioner(*submit, "caption", finished / "run")
    assert (other.returncode, "does something else" in other.stderr) == (2, True)
    with cluster.started(*submit, *job) as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline() == f"job nightly-1 on {cluster.address}\n"
        assert follower.stdout is not None
        assert any("Running entrypoint" in line for line in iter(follower.stdout.readline, ""))
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "The job goes on" in err
    stop = next(line for line in err.splitlines() if "to stop it" in line).partition(":")[2]
    assert stop.split()[:3] == ["ray", "job", "stop"]
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(cluster.address, headers={"Authorization": f"Bearer {TOKEN}"})
    assert client.get_job_status("nightly-1") in (JobStatus.PENDING, JobStatus.RUNNING)
    with cluster.started(*submit, *job) as follower:
        assert client.stop_job("nightly-1")
        _, err = follower.communicate(timeout=60)
    assert follower.returncode == 75, err
    assert "the job was stopped. The same command goes on" in err
    again = cluster.captioner(*submit, "--no-wait", *job)
    assert (again.returncode, again.stdout) == (0, "nightly-1\n"), again.stderr
    assert "has ended before (STOPPED), and is submitted again" in again.stderr
    assert client.get_job_status("nightly-1") in (JobStatus.PENDING, JobStatus.RUNNING)
    assert client.stop_job("nightly-1")


@pytest.fixture
def signed_urls(scene_data: Path) -> Iterator[list[str]]:
    """A web server's addresses of three images: one good, one forbidden, one missing."""
    picture = sorted((scene_data / "Images").iterdir())[0].read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 200 if "good" in self.path else 403 if "forbidden" in self.path else 404
            body = picture if status == 200 and SIGNATURE in self.path else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    yield [f"{at}/{name}.png?X-Amz-Expires=9&X-Amz-Signature={SIGNATURE}" for name in (
        "good", "forbidden", "missing")]  # fmt: skip
    server.shutdown()


def test_no_secret_is_in_what_is_said_logged_or_written(
    cluster: Head, finished: Path, signed_urls: list[str], tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(signed_urls))
    out = tmp_path / "captions"
    done = cluster.captioner(
        "submit", "--address", cluster.address, "caption", listed,
        "--model", finished / "run" / "model", "--out", out, "--format", "jsonl", "--format", "csv",
        "--set=source.allow_http=true", "--set=source.format=list", "--max-error-rate", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        row["image_id"].rpartition("/")[2]: row
        for row in parquet_dir.read(str(out / "captions")).to_pylist()
    }
    assert set(rows) == {"good.png", "forbidden.png", "missing.png"}
    assert rows["good.png"]["caption"] is not None
    assert "403" in rows["forbidden.png"]["error"]
    assert rows["missing.png"]["error"] is not None
    stored = parquet_dir.read(str(out / "manifest"))
    assert sorted(stored["uri"].to_pylist()) == sorted(signed_urls)  # what reads them again
    status = cluster.captioner("status", out, "--json")
    assert json.loads(status.stdout)["command"].startswith(f"captioner caption {listed} --model")
    secrets = [SIGNATURE, TOKEN, *SECRETS.values()]
    for text in (
        done.stdout,
        done.stderr,
        status.stdout,
        str(stored.drop_columns(["uri"]).to_pylist()),
    ):
        assert not any(secret in text for secret in secrets)
    files = [path for path in out.rglob("*") if path.is_file() and "manifest" not in path.parts]
    assert {"captions.jsonl", "captions.csv", "config.yaml", "progress.json"} <= {
        path.name for path in files
    }
    for path in files:
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += str(pa.parquet.read_table(path).to_pylist()).encode()
        assert not any(secret.encode() in text for secret in secrets), path
    logs = [path for path in cluster.logs.rglob("*") if path.is_file()]
    assert any("nightly" in path.name or "raysubmit" in path.name for path in logs)
    for path in logs:
        text = path.read_bytes()
        assert not any(secret.encode() in text for secret in secrets), path
