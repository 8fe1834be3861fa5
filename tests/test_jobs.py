"""jobs/run_grid.py through the Jobs API of a real head node with token authentication."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-of-this-test-alone-0123456789abcdef"

# Run in a process of its own: Ray reads its token once in a process.
SUBMIT = """
import sys, time
from ray.job_submission import JobSubmissionClient

address, working_dir, entrypoint = sys.argv[1:]
client = JobSubmissionClient(address)
job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": working_dir})
while not client.get_job_status(job).is_terminal():
    time.sleep(0.5)
print(client.get_job_logs(job))
print(client.get_job_status(job).value)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment(folder: Path, **extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder), **extra}


class Head(NamedTuple):
    jobs: str
    address: str
    client: str
    folder: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def head():
    """A head node on loopback. Its folder has a short name because it holds unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="rj"))
    (folder / "token").write_text(TOKEN)
    env = environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    port, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--min-worker-port=0", "--max-worker-port=0",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--metrics-export-port={metrics}", f"--object-store-memory={100 * 2**20}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_port(dashboard, process, folder / "log")
        yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", f"127.0.0.1:{client}", folder, env)
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture
def project(tmp_path, world):
    """What a job needs of the project, with a small grid."""
    for name in ("raypipe", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    small = world.grid(layers=[3], concepts={"k": 6}, pairs=["en-de"], resources={"workers": 2, "memory": "100MiB"})
    (tmp_path / "project" / "grid.yaml").write_text(yaml.safe_dump(small))
    return tmp_path / "project"


def submit(address: str, project: Path, run: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    entrypoint = f"{sys.executable} jobs/run_grid.py grid.yaml --run {run}"
    command = [sys.executable, "-c", SUBMIT, address, str(project), entrypoint]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.ray
def test_a_grid_runs_as_a_job(head, project, tmp_path):
    done = submit(head.jobs, project, tmp_path / "run", head.env)
    assert done.stdout.splitlines()[-1:] == ["SUCCEEDED"], done.stdout + done.stderr
    assert re.search(r"Ray at \S+ \(1 nodes, 2 CPUs\)", done.stdout)
    calign = pq.read_table(tmp_path / "run" / "scores" / "calign.parquet").to_pandas()
    assert set(calign.revision) == {"step-2", "step-10", "random:7"}
    assert len(calign) == 3 * 2 * 2  # revisions x directions x thetas
    assert (tmp_path / "run" / "report" / "index.html").is_file()


@pytest.mark.ray
@pytest.mark.parametrize(
    "token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong-0123456789"}], ids=["none", "wrong"]
)
def test_a_submitter_without_the_token_is_refused(head, project, tmp_path, token):
    refused = submit(head.jobs, project, tmp_path / "run", environment(head.folder, **token))
    assert refused.returncode != 0
    assert "SUCCEEDED" not in refused.stdout
    assert "token" in refused.stderr.lower()
    assert not (tmp_path / "run").exists()


JOIN = """
import sys
from raypipe.cluster import connect
from raypipe.cluster.protocol import Resources
from raypipe.errors import ClusterError

try:
    print(connect(sys.argv[1], Resources(1, 0, 1, 0)).name)
except ClusterError as error:
    print(error)
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("token", "text"),
    [
        ({}, r"joined at \S+ \(UNAUTHENTICATED\); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong-0123456789"},
            r"joined at \S+ \(UNAUTHENTICATED\); set RAY",
        ),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, r"^Ray at \S+ \(1 nodes, 2 CPUs\)"),
    ],
    ids=["none", "wrong", "right"],
)
def test_joining_takes_the_token(head, token, text):
    done = join(head, head.address, token)
    assert re.search(text, done.stdout), done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


@pytest.mark.ray
def test_joining_at_a_port_of_ray_client_is_refused_with_advice(head):
    done = join(head, head.client, {})
    assert done.stdout == (
        f"no Ray head node can be joined at {head.client} (UNIMPLEMENTED); give the port of `ray start --head --port`\n"
    )


def join(head: Head, address: str, token: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env = environment(head.folder, PYTHONPATH=str(ROOT), **token)
    command = [sys.executable, "-c", JOIN, address]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
