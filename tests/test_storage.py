"""Runs in an object store, against a real S3 server on loopback: the same tables, whole files, one driver at a time, patience."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_world
from conftest import Done
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pyarrow import fs

from raypipe import lease, pipeline, rundir, storage
from raypipe.errors import RunError
from raypipe.grid import Grid
from raypipe.lease import LEASE, Lease
from raypipe.progress import Silent
from raypipe.results import open_run
from raypipe.rundir import RunDir
from raypipe.stages.context import answer_probe
from raypipe.storage import Remote, below, place, published

SMALL = {"languages": ["en", "de"], "layers": [1], "concepts": {"k": [6], "seeds": [0, 1]}}
TABLES = ("calign", "colap", "aligned", "overlap")


class Server:
    """An S3 server on loopback that may be told to refuse and to delay requests."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._answer = DomainDispatcherApplication(create_backend_app)
        self._served = make_server("127.0.0.1", 0, self._app, threaded=True)
        self._thread = threading.Thread(target=self._served.serve_forever, daemon=True)
        self._thread.start()
        self.options = f"scheme=http&endpoint_override=127.0.0.1:{self._served.port}&region=us-east-1"
        self.trouble()

    def trouble(
        self,
        refuse: Callable[[str, str], bool] = lambda *_: False,
        delay: float = 0.0,
        answer: tuple[str, bytes] = ("503 Slow Down", b""),
    ) -> None:
        self._refuse, self._delay, self._refusal = refuse, delay, answer

    def _app(self, environ: dict[str, Any], start: Any) -> Any:
        time.sleep(self._delay)
        if self._refuse(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            status, body = self._refusal
            start(status, [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
            return [body]
        return self._answer(environ, start)

    def close(self) -> None:
        self._served.shutdown()
        self._thread.join()


class Store:
    """A bucket of its own."""

    def __init__(self, server: Server, bucket: str) -> None:
        self.trouble = server.trouble
        self.uri = f"s3://{bucket}/runs/one?{server.options}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = Server()
    yield served
    served.close()


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Store]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret-of-the-test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = "b" + re.sub("[^a-z0-9]", "", request.node.name.lower())[:50]
    options = {name: value for name, _, value in (part.partition("=") for part in server.options.split("&"))}
    fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir(bucket)
    yield Store(server, bucket)
    server.trouble()


def tables(where: Any) -> dict[str, bytes]:
    run = open_run(where)
    return {name: (run.path / f"scores/{name}.parquet").read_bytes() for name in TABLES}


def test_a_run_in_an_object_store_has_the_bytes_of_one_in_a_folder(
    store: Store, world: tiny_world.World, tmp_path: Path
) -> None:
    grid = Grid(**world.grid(**SMALL))
    pipeline.run(grid, tmp_path / "run", "inprocess")
    found = pipeline.run(grid, store.uri, "inprocess")
    assert tables(store.uri) == tables(tmp_path / "run")
    there = set(below(place(store.uri), "*"))
    assert {"run.json", "grid.yaml", "report/index.html"} <= there
    assert there == set(below(tmp_path / "run", "*")) - {".lock"}
    assert found.grid == open_run(tmp_path / "run").grid
    assert found.states("tiny", "step-2", "en", 1)[1].shape[1] > 0
    # Nothing is done twice, and nothing that was written names the credentials.
    before = {name: (found.path / name).read_bytes() for name in there if name.startswith("_done")}
    pipeline.run(grid, store.uri, "inprocess")
    assert before == {name: (found.path / name).read_bytes() for name in before}
    assert not any(b"secret-of-the-test" in (found.path / name).read_bytes() for name in there)


class Looks(Silent):
    """Asks for the state of the run from a process of its own when the clusterings begin."""

    def __init__(self, where: str) -> None:
        self._where, self.found = where, dict[str, Any]()

    def start(self, stage: str, total: int, unit: str) -> None:
        if stage == "concepts":
            words = [sys.executable, "-m", "raypipe.cli", "status", self._where, "--json"]
            self.found = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=200).stdout)


@pytest.mark.parametrize("remote", [True, False])
def test_another_shell_sees_how_far_a_run_is_while_it_works_and_its_logs(
    remote: bool, store: Store, world: tiny_world.World, tmp_path: Path, command: Callable[..., Done]
) -> None:
    looks = Looks(store.uri if remote else str(tmp_path / "run"))
    run = pipeline.run(Grid(**world.grid(**SMALL)), looks._where, "inprocess", watcher=looks)
    stages = {stage: counts for stage, counts in looks.found["stages"].items() if counts["planned"]}
    assert stages["extract"]["done"] == stages["extract"]["planned"]
    assert stages["concepts"] == {"planned": 18, "done": 0, "partial": 0, "failed": 0}
    text = command("status", looks._where).out
    assert "endpoint_override" not in text
    assert command("grid", storage.address(run.path / "grid.yaml")).out == (run.path / "grid.yaml").read_text()
    for stage, counts in stages.items():
        assert f"logs/{stage}.log" in text
        lines = (run.path / f"logs/{stage}.log").read_text().splitlines()
        assert re.fullmatch(r"\S+Z \d+ of \d+ cells to do on in-process, no Ray", lines[0])
        assert len({line.split(" ", 2)[2].rpartition(": ")[0] for line in lines[1:]}) == counts["planned"]
        assert all(re.fullmatch(rf"\S+Z done {stage} .*: [\d.]+ s, \d+ bytes", line) for line in lines[1:])


def test_logs_of_a_store_are_kept_by_the_next_driver_and_written_while_the_run_works(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("one", "two"):
        run = RunDir.create(store.uri, "tiny")
        run.write_json("run.json", {"name": "tiny"})
        with run.only_writer():
            run.log("corpus", text)
    monkeypatch.setattr(rundir, "LOG_SECONDS", 0.0)
    run.log("corpus", "three")
    lines = (run.path / "logs/corpus.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["one", "two", "three"]


def test_workers_of_a_ray_write_in_the_object_store(store: Store, world: tiny_world.World, tmp_path: Path) -> None:
    grid = Grid(**world.grid(**SMALL, resources={"workers": 2}))
    pipeline.run(grid, tmp_path / "run", "inprocess")
    pipeline.run(grid, store.uri, "local")
    assert tables(store.uri) == tables(tmp_path / "run")


def test_a_store_that_refuses_and_delays_costs_time_and_no_byte(
    store: Store, world: tiny_world.World, tmp_path: Path
) -> None:
    grid = Grid(**world.grid(**SMALL))
    pipeline.run(grid, tmp_path / "run", "inprocess")
    requests = count()
    store.trouble(refuse=lambda *_: next(requests) % 7 == 3, delay=0.005)
    pipeline.run(grid, store.uri, "inprocess")
    assert next(requests) > 100
    assert tables(store.uri) == tables(tmp_path / "run")


def test_a_store_that_stays_away_ends_the_run_with_a_reason_and_the_next_run_goes_on(
    store: Store, world: tiny_world.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    grid = Grid(**world.grid(**SMALL))
    store.trouble(refuse=lambda method, path: method == "PUT" and "/corpus/" in path)
    with pytest.raises(Exception, match=r"s3://.*cannot be written"):
        pipeline.run(grid, store.uri, "inprocess")
    store.trouble()
    assert pipeline.run(grid, store.uri, "inprocess").calign().num_rows


FORBIDDEN = b"""<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match.</Message>
<AWSAccessKeyId>secret-of-the-test</AWSAccessKeyId><StringToSign>secret-of-the-test/20261121</StringToSign></Error>"""


def test_neither_files_nor_words_of_a_run_that_the_store_refuses_hold_the_credentials(
    store: Store, world: tiny_world.World, tmp_path: Path, command: Callable[..., Done]
) -> None:
    (tmp_path / "grid.yaml").write_text(Grid(**world.grid(**SMALL)).to_yaml())
    store.trouble(
        lambda method, path: method == "PUT" and "/one/concepts/" in path, answer=("403 Forbidden", FORBIDDEN)
    )
    done = command("run", tmp_path / "grid.yaml", "--run", store.uri, "--address", "inprocess")
    assert done.code == 1
    assert "cannot be written" in done.error
    store.trouble()
    where = place(store.uri)
    files = {name: (where / name).read_bytes() for name in below(where, "*")}
    assert {"_failed", "logs"} <= {name.partition("/")[0] for name in files}
    told = [done.out.encode(), done.err.encode(), *files.values()]
    assert any(b"Traceback" in text for text in told)
    assert not any(b"secret-of-the-test" in text for text in told)


def test_a_run_out_of_reach_is_one_line(store: Store, command: Callable[..., Done]) -> None:
    store.trouble(lambda *_: True, answer=("403 Forbidden", FORBIDDEN))
    done = command("status", store.uri)
    assert re.fullmatch(
        r"s3://\w+/runs/one/run\.json: out of reach \(.*\); check its name and your credentials", done.error
    )
    assert "secret-of-the-test" not in done.err


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The prefix of a bucket of a server on loopback that speaks as Google's store does, in a process of its own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    how = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {"type": "service_account", "client_email": "a@b", "private_key": key.private_bytes(*how).decode()}
    account |= {
        "private_key_id": "k",
        "token_uri": "https://oauth2.googleapis.com/token",
    }  # not asked: the key signs for itself
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", "b"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", *words], **quiet) as served:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield f"gs://b/runs/one?scheme=http&endpoint_override=127.0.0.1:{port}"
        finally:
            served.terminate()


def test_a_run_in_googles_store_has_the_bytes_of_one_in_a_folder(
    google: str, world: tiny_world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.2)
    grid = Grid(**world.grid(**SMALL))
    pipeline.run(grid, tmp_path / "run", "inprocess")
    run = pipeline.run(grid, google, "inprocess")
    assert tables(google) == tables(tmp_path / "run")
    assert set(below(run.path, "*")) == set(below(tmp_path / "run", "*")) - {".lock"}
    shard = next(name for name in below(run.path, "*.parquet") if name.startswith("activations"))
    whole = (run.path / shard).read_bytes()
    with published(run.path / shard) as temporary:
        temporary.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(RunError, match=r"^gs://b/runs/one/activations/.*: was damaged \(.*\) and is removed"):
        RunDir(run.path).read_table(shard)
    assert not (run.path / shard).exists()
    _write_in_part(run.path / "file")
    assert not (run.path / "file").exists()
    with Lease(run.path), pytest.raises(RunError, match=r"process \d+ on .* is writing there"):
        Lease(run.path).__enter__()


def _write_in_part(target: Any) -> None:
    def write() -> None:
        with published(target) as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        write()


def test_an_object_is_whole_or_not_there(store: Store) -> None:
    target = place(store.uri) / "folder/file"
    _write_in_part(target)
    assert not target.exists()
    with published(target) as temporary:
        temporary.write_bytes(b"one")
    _write_in_part(target)
    assert target.read_bytes() == b"one"
    target.unlink()
    target.unlink(missing_ok=True)
    assert below(place(store.uri), "*") == []


def test_a_changed_object_is_found_and_removed_and_one_out_of_reach_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    run, table = RunDir.create(store.uri, "tiny"), pa.table({"a": range(9), "b": ["word"] * 9})
    run.write_table("t.parquet", table)
    for allowed in range(2):  # the footer is out of reach, then the columns
        gets = count()
        store.trouble(refuse=lambda method, path, gets=gets, allowed=allowed: method == "GET" and next(gets) >= allowed)
        with pytest.raises(RunError, match=r"^s3://.*/t\.parquet: missing or out of reach \(.*\); run the grid again$"):
            run.read_table("t.parquet")
    store.trouble()
    assert run.read_table("t.parquet").equals(table)
    whole = (run.path / "t.parquet").read_bytes()
    for at in range(0, len(whole), 37):
        run.write_bytes("t.parquet", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(RunError, match=r"^s3://.*/t\.parquet: was damaged \(.*\) and is removed"):
            run.read_table("t.parquet")
        assert not (run.path / "t.parquet").exists()


def _first(method: str, then: Callable[[], object], before: int = 0) -> Callable[[str, str], bool]:
    """Refuses nothing, and does something just before the request of a method is answered that comes after `before` others."""
    asked = count()
    return lambda asks, _: asks == method and next(asked) == before and then() is None and False


def test_an_object_that_is_replaced_while_it_is_read_is_one_version_of_it(store: Store) -> None:
    target = place(store.uri) / "file"

    def put(text: bytes) -> None:
        with published(target) as temporary:
            temporary.write_bytes(text)

    for later in (b"short", b"much longer than before"):
        put(b"the first one")
        store.trouble(refuse=_first("GET", lambda later=later: put(later)))
        assert target.read_bytes() == later
    store.trouble(refuse=_first("GET", target.unlink))
    with pytest.raises(FileNotFoundError):
        target.read_bytes()
    put(b"0")
    lengths = count(2)
    store.trouble(refuse=lambda method, _: method == "GET" and put(b"0" * next(lengths)) is not None)
    with pytest.raises(OSError, match=r"^replaced again and again while it is read$"):
        target.read_bytes()


def test_a_table_that_is_replaced_while_it_is_read_stays(store: Store) -> None:
    run = RunDir.create(store.uri, "tiny")
    tables = [pa.table({"a": np.random.default_rng(0).random(n), "b": ["word"] * n}) for n in (9, 20_000)]
    for was, becomes in (tables, tables[::-1]):
        for before in range(2):  # the footer is asked for, then the columns
            run.write_table("t.parquet", was)
            store.trouble(refuse=_first("GET", lambda new=becomes: run.write_table("t.parquet", new) and None, before))
            with pytest.raises(RunError, match=r"^s3://.*/t\.parquet: was replaced while it was read; read it again$"):
                run.read_table("t.parquet")
            assert run.read_table("t.parquet").equals(becomes)


def test_a_place_is_named_without_its_options_and_made_again_from_its_address(store: Store) -> None:
    remote = place(store.uri)
    assert isinstance(remote, Remote)
    assert str(remote / "a" / "b=c").endswith("/runs/one/a/b=c")
    assert storage.address(place(storage.address(remote / "a")) / "b") == storage.address(remote / "a/b")
    assert place("file:///the%20re") == Path("/the re")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://host/run", "ftp://host/run: unknown kind of storage; expected a folder, s3://, gs:// or file:///"),
        ("s3://key:word@bucket/run", "s3://bucket/run: holds credentials; give them by the environment"),
        (
            "s3://b/run?secret_key=x",
            "s3://b/run: unknown option secret_key; expected endpoint_override, region, scheme",
        ),
        ("gs://b/run?secret=x", "gs://b/run: unknown option secret; expected endpoint_override, scheme"),
        ("gs://word@bucket/run", "gs://bucket/run: holds credentials; give them by the environment"),
        ("gs:///run", "gs:///run: names no bucket; expected gs://BUCKET/PREFIX"),
        ("file://runs/mini", "file://runs/mini: unknown kind of storage; expected a folder, s3://, gs:// or file:///"),
        ("s3:///run", "s3:///run: names no bucket; expected s3://BUCKET/PREFIX"),
        ("", "the run directory's name is empty; expected a folder, s3://, gs:// or file:///"),
        ("s3://key:word@[b/run", "s3://…: not a URI; expected such as s3://BUCKET/PREFIX"),
    ],
)
def test_a_uri_that_cannot_be_used_is_one_line(uri: str, said: str) -> None:
    with pytest.raises(RunError, match=re.escape(said)) as error:
        place(uri)
    assert "word@" not in str(error.value)


@pytest.mark.parametrize("options", ["scheme=http&endpoint_override=127.0.0.1:1", "scheme=ftp"])
def test_a_store_that_cannot_be_asked_is_one_line(
    options: str, store: Store, monkeypatch: pytest.MonkeyPatch, world: tiny_world.World
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    uri, said = f"s3://b/run?{options}&region=us-east-1", r"^s3://b/run.*: out of reach \(.*\); check its name and"
    with pytest.raises(RunError, match=said):
        open_run(uri)
    with pytest.raises(RunError, match=said):
        pipeline.run(Grid(**world.grid(**SMALL)), uri, "inprocess")
    with pytest.raises(RunError, match=said):
        below(place(uri), "*")


def test_a_node_that_the_store_refuses_says_why(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    store.trouble(lambda *_: True, answer=("403 Forbidden", FORBIDDEN))
    with pytest.raises(RunError, match="ACCESS_DENIED"):
        answer_probe({"run": store.uri, "name": "probe.tmp", "token": "t"})


def test_another_users_driver_lives(tmp_path: Path) -> None:
    found = {"machine": socket.gethostname(), "process": 1}
    if root := os.getuid() == 0:
        os.setresuid(65534, 65534, 0)  # nobody, who may not signal the first process
    try:
        assert not Lease(tmp_path)._is_gone(found)
    finally:
        if root:
            os.setresuid(0, 0, 0)


def test_a_second_driver_is_refused_while_the_lease_lasts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.2)
    where = place(store.uri)
    with Lease(where), pytest.raises(RunError, match=r"process \d+ on .* is writing there; wait until it ends"):
        Lease(where).__enter__()
    with Lease(where):
        pass
    assert below(where, "*") == []


def test_a_second_driver_is_refused_while_the_first_renews_its_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.1)
    where, ends = place(store.uri), time.time() // 1 + 60
    with Lease(where):
        for until, renewed in ((ends + 0.25, ends + 0.125), (ends + 0.125, ends + 0.25)):  # more digits, then fewer
            _content(where, until=until)
            store.trouble(refuse=_first("GET", partial(_content, where, until=renewed)))
            with pytest.raises(RunError, match=r"process \d+ on .* is writing there"):
                Lease(where).__enter__()


def test_of_claims_that_cross_one_holds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.5)
    where, held, refused, together = place(store.uri), list[Lease](), list[RunError](), threading.Barrier(8)

    def claim() -> None:
        together.wait()
        try:
            held.append(Lease(where).__enter__())
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].__exit__()


def test_a_claim_that_took_long_to_write_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLED", 1.0)
    writings = count()
    store.trouble(refuse=lambda method, _: method == "PUT" and next(writings) == 0 and time.sleep(1.2) is not None)
    with Lease(place(store.uri)):
        assert next(writings) >= 2


def _content(where: Any, **changed: Any) -> None:
    found = json.loads((where / LEASE).read_bytes()) | changed
    with published(where / LEASE) as temporary:
        temporary.write_text(json.dumps(found))


@pytest.mark.parametrize("remote", [True, False])
def test_a_dead_drivers_lease_is_taken_over(
    remote: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.1)
    where = place(store.uri) if remote else tmp_path
    with published(where / LEASE) as temporary:
        temporary.write_text("{}")
    _content(where, process=2**22 + 1, machine=lease.socket.gethostname(), until=time.time() + 60, token="t")
    with Lease(where):  # its process is gone
        pass
    with published(where / LEASE) as temporary:
        temporary.write_text("{}")
    _content(where, process=1, machine="elsewhere", until=time.time() + 60, token="t")
    with pytest.raises(RunError, match=r"process 1 on elsewhere is writing there; .* its lease ends in (60|59) s"):
        Lease(where).__enter__()
    _content(where, until=time.time() - 1)
    with Lease(where):  # its time is over
        pass
    with published(where / LEASE) as temporary:
        temporary.write_text("{}")
    _content(where, process=1, machine="elsewhere", until=time.time() + 6e5, token="t")
    with pytest.raises(RunError, match=r"\(if it was killed, with its clock ahead, remove .*/\.lease\)"):
        Lease(where).__enter__()


@pytest.mark.parametrize(
    "content",
    [
        "[" * 10**5,
        '{"until": 9e12}',
        '{"process": 1, "machine": 3, "token": "t", "until": 9e12}',
        '{"process": 1, "machine": "m", "token": "t", "until": "x"}',
        "MINE",
    ],
)
def test_a_lease_that_none_wrote_holds_nothing(
    content: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.05)
    mine = {"process": 10**30, "machine": socket.gethostname(), "token": "t", "until": 9e12}
    for where in (place(store.uri), tmp_path):
        with published(where / LEASE) as temporary:
            temporary.write_text(json.dumps(mine) if content == "MINE" else content)
        with Lease(where):
            pass


def test_a_driver_that_lost_its_lease_writes_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lease, "SETTLED", 0.1)
    monkeypatch.setattr(lease, "SECONDS", 1.0)
    run = RunDir.create(store.uri, "tiny")
    with run.only_writer():
        time.sleep(2.0)  # renewed meanwhile
        run.write_json("a.json", 1)
        with pytest.raises(RunError, match="the right to write there was lost"):  # noqa: PT012 - a renewal may cross it
            for _ in range(20):
                _content(run.path, token="another", until=time.time() + 60)
                time.sleep(0.3)
                run.write_json("a.json", 2)
    assert (run.path / LEASE).exists()  # the other one's


def test_a_driver_that_slept_takes_its_lease_of_a_folder_up_again(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "tiny")
    with run.only_writer():
        assert run._lease is not None
        run._lease._until = 0.0  # as after a night: the lock has kept all others out
        run.write_json("a.json", 1)
        _content(tmp_path, token="another")
        for hurt in ((tmp_path / LEASE).touch, (tmp_path / LEASE).unlink, (tmp_path / LEASE).mkdir):
            hurt()
            run._lease._until = 0.0
            with pytest.raises(RunError, match="the right to write there was lost"):
                run.write_json("a.json", 2)
