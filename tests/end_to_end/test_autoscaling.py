"""A cluster without any worker grows to what a job needs: Ray's own autoscaler, and a provider of
nodes that are processes of this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

pytestmark = pytest.mark.slow

HEAD = "f" * 51 + "00000"  # the id that the provider knows the head by

LISTS = [
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


@pytest.fixture
def growing_cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a head that can have one node with a (logical) GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    node = {"node_config": {}, "min_workers": 0}
    config = {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": provider,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {**node, "resources": {"CPU": 0}, "max_workers": 0},
            "gpu": {**node, "resources": {"CPU": 5, "GPU": 1}, "max_workers": 1},
        },
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in LISTS},
        "file_mounts_sync_continuously": False,
    }
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_enable_autoscaler_v2": "1",
    }
    host, _, port = address.partition(":")
    options = f"--head --block --num-cpus=0 --num-gpus=0 --include-dashboard=false --port={port}"
    command = [str(Path(sys.executable).parent / "ray"), "start", *options.split()]
    command += [f"--node-ip-address={host}", f"--autoscaling-config={tmp_path}/autoscaler.json"]
    # Not Ray's own: there it would be what `address="auto"` finds. Not tmp_path: paths of sockets
    # have to be short.
    temporary = tempfile.mkdtemp(prefix="ray-")
    command += [f"--temp-dir={temporary}"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield address
    finally:
        head.terminate()
        head.wait(60)
        for process in psutil.process_iter(["cmdline"]):  # the nodes that it has started
            if address in " ".join(process.info["cmdline"] or []):
                process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


SCRIPT = """
import sys
import ray
from captioner import configuration
from captioner.errors import CannotSchedule
from jobs import session, pools

def config(**cluster):
    cluster = {"address": sys.argv[1], "device": "cuda", **cluster}
    values = {"name": "grow", "run": "/nowhere", "source": {"images": "/nowhere"}}
    return configuration.parse({**values, "cluster": cluster}, "test")


session.begin(config())
assert not ray.cluster_resources().get("GPU")
print(pools.encoders(config(encoders=1, patience=120)).bundle)
assert ray.cluster_resources()["GPU"] == 1
try:
    pools.encoders(config(encoders=2, patience=3))
except CannotSchedule as error:
    print(error)
"""


def test_from_nothing(growing_cluster: str) -> None:
    host, _, port = growing_cluster.partition(":")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as found:
            if found.connect_ex((host, int(port))) == 0:
                break
        time.sleep(0.2)
    # A process of its own: the other tests' cluster may be connected to this one.
    command = [sys.executable, "-c", SCRIPT, growing_cluster]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_enable_autoscaler_v2": "1"}
    job = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    assert "{'CPU': 1, 'GPU': 1}" in job.stdout
    assert "the job needs 2 workers" in job.stdout
