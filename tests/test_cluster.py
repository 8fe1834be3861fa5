"""Both places of work, in-process and a real local Ray, are held to the same tests; the faults only Ray can survive."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raypipe.cluster import connect
from raypipe.cluster.protocol import MAX_DEATHS, Failure, Resources
from raypipe.errors import ClusterError, ClusteringError
from raypipe.science.kmeans import fit
from raypipe.science.kmeans_points import LocalPoints, seen

TWO = Resources(workers=2, gpus_per_worker=0, threads=1, memory=0)


# --- Addresses. These come first: they need a process that has no Ray yet. ---


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("ray://head:10001", r"ray://head:10001.*the driver must run inside the cluster.*ray job submit"),
        ("http://head:8265", r"http://head:8265.*ray job submit"),
        ("nonsense", r"'nonsense': expected auto, local, inprocess or HOST:PORT"),
        ("host:port", r"'host:port': expected auto"),
    ],
)
def test_addresses_of_another_form_are_refused(address, text):
    with pytest.raises(ClusterError, match=text):
        connect(address, TWO)


def test_a_port_where_nothing_listens_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(
        ClusterError, match=rf"no Ray head node can be joined at {address} \(UNAVAILABLE\); check"
    ) as error:
        connect(address, TWO)
    assert time.monotonic() - start < 15
    assert "\n" not in str(error.value)


def test_a_silent_port_is_refused_in_time_and_auto_reads_ray_address(monkeypatch):
    from raypipe.cluster import ray_cluster

    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ClusterError, match="DEADLINE_EXCEEDED"):
            connect("auto", TWO)


def test_a_ray_address_that_names_no_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ClusterError, match="RAY_ADDRESS is 'auto': expected HOST:PORT of a Ray head node, or local"):
        connect("auto", TWO)


def run_script(code: str, tmp_path: Path, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A Python program in a session of its own; its name for the session is its process id."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    root = Path(__file__).resolve().parents[1]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env["PYTHONPATH"] = str(root)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        start_new_session=True,
    ) as process:  # fmt: skip
        out, err = process.communicate(timeout=timeout)
    assert not session_members(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def session_members(session: int) -> list[str]:
    """Command lines of the living processes of a session, waiting a little for them to go."""
    for _ in range(600):
        left = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                fields = (directory / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    left.append((directory / "cmdline").read_text())
            except OSError:
                continue
        if not left:
            break
        time.sleep(0.1)
    return left


def test_inprocess_imports_neither_ray_nor_torch(tmp_path):
    code = """
        import sys
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources
        connect("inprocess", Resources(1, 0, 1, 0)).close()
        print({"ray", "torch"} & set(sys.modules))
    """
    assert run_script(code, tmp_path).stdout == "set()\n"


@pytest.mark.ray
def test_local_ray_is_silent_about_lost_workers_and_leaves_nothing_behind(tmp_path):
    code = f"""
        import os, threading
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources
        from raypipe.errors import ClusterError

        def work(item):
            if not os.path.exists({str(tmp_path / "mark")!r}):
                open({str(tmp_path / "mark")!r}, "w").close()
                os._exit(1)
            return item + 1

        class Echo:
            def __call__(self, item):
                return item

        def elsewhere():
            try:
                connect("auto", Resources(1, 0, 1, 0))
            except ClusterError as error:
                print(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with connect("auto", Resources(1000, 0, 1, 0)) as cluster:
            print(cluster.resources.workers == 4 * os.cpu_count())
        with connect("auto", Resources(1, 0, 2, 0)) as cluster:
            print(cluster.name)
            print(list(cluster.map(work, [1])), list(cluster.stream(Echo, [{{"a": 1}}])))
    """
    done = run_script(code, tmp_path, timeout=90)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "Ray must be started on the main thread (its processes end with the thread); connect there",
        "True",
        "a new local Ray (1 workers x 2 threads)",
        "[(0, 2)] [(0, {'a': 1})]",
    ]


@pytest.mark.ray
def test_every_other_node_with_room_for_a_worker_is_visited(tmp_path):
    """A head without CPUs drives two nodes that can hold a worker and one that cannot."""
    code = """
import os, ray
from ray.cluster_utils import Cluster
from raypipe.cluster import connect
from raypipe.cluster.protocol import Failure, Resources

def where(item):
    if item == "fail":
        raise ValueError("not here")
    node = ray.get_runtime_context().get_node_id()
    if item == "dies once" and not os.path.exists("FOLDER/" + node):
        open("FOLDER/" + node, "w").close()
        os._exit(1)
    if item == f"{node} is lost":
        os.kill(os.getppid(), 9)  # its raylet
        os._exit(1)
    return {"node": node, "item": item}

os.environ.update(RAY_health_check_initial_delay_ms="1000", RAY_health_check_period_ms="500")  # a lost node is missed soon
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=cpus) for cpus in (2, 2, 1)]
try:
    with connect(cluster.address, Resources(1, 0, 2, 0)) as place:
        found = list(place.on_other_nodes(where, 7))
        print(sorted(answer["node"] for _, answer in found) == sorted(node.node_id for node in nodes[:2]))
        print([address for address, _ in found], {answer["item"] for _, answer in found})
        print([answer.message for _, answer in place.on_other_nodes(where, "fail")])
        print([answer["item"] for _, answer in place.on_other_nodes(where, "dies once")])
        left = place.on_other_nodes(where, f"{nodes[0].node_id} is lost")
        print([answer["node"] for _, answer in left] == [nodes[1].node_id])
finally:
    cluster.shutdown()
"""
    done = run_script(code.replace("FOLDER", str(tmp_path)), tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    same, found, failed, again, left = done.stdout.splitlines()[-5:]
    assert again == "['dies once', 'dies once']"
    assert left == "True"
    assert same == "True"
    assert found.endswith("{7}")
    assert found.count(".") == 6
    assert failed == "['ValueError: not here', 'ValueError: not here']"


@pytest.mark.ray
def test_ctrl_c_ends_pending_work_and_all_processes(tmp_path):
    code = f"""
        import os, signal, threading, time
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources

        def work(item):
            open({str(tmp_path)!r} + f"/started-{{item}}", "w").close()
            time.sleep(300)

        def interrupt():
            while not os.path.exists({str(tmp_path / "started-0")!r}):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        with connect("local", Resources(2, 0, 1, 0)) as cluster:
            threading.Thread(target=interrupt).start()
            try:
                list(cluster.map(work, range(100)))
            except KeyboardInterrupt:
                print("interrupted")
    """
    assert run_script(code, tmp_path).stdout == "interrupted\n"
    assert len(list(tmp_path.glob("started-*"))) <= 2


@pytest.mark.ray
@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            "gone(); list(cluster.map(abs, [1]))",
            "the Ray of this node died; what is finished is kept, start the cluster again, .*",
        ),
        # Past every handler: what talks to the raylet, and what waits for workers that go with it.
        ("gone(); ray.put(bytes(10**6))", "the driver ended at once: .*; what is finished is kept, .*"),
        (
            "with cluster.points(lambda shard: np.zeros((2, 2), np.float32), [0]) as points: points.map(visit, raylet.pid)",
            "the driver ended at once: .*; what is finished is kept, .*",
        ),
    ],
)
def test_a_driver_whose_own_raylet_is_gone_ends_with_one_line(call, line, tmp_path):
    code = f"""
        import os, sys, time, ray, psutil
        import numpy as np
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources
        from raypipe.errors import ClusterError

        def gone():
            raylet.kill()
            raylet.wait()

        def visit(shard, raylet):
            os.kill(raylet, 9)
            time.sleep(600)

        try:
            with connect("local", Resources(1, 0, 1, 0)) as cluster:
                [raylet] = [child for child in psutil.Process().children() if child.name() == "raylet"]
                {call}
        except ClusterError as error:
            print("raypipe:", error, file=sys.stderr)
            sys.exit(1)
    """
    done = run_script(code, tmp_path, timeout=240)
    assert done.returncode == 1
    assert re.fullmatch(f"raypipe: {line}\n", done.stderr)


@pytest.mark.ray
def test_a_cluster_that_answers_and_cannot_be_joined_gives_one_line(tmp_path):
    code = """
        import ray
        from raypipe.cluster import ray_cluster
        from raypipe.errors import ClusterError

        ray.init(num_cpus=1, include_dashboard=False)
        try:
            ray_cluster._join(ray.get_runtime_context().gcs_address)  # a second time
        except ClusterError as error:
            print(error)
        ray.shutdown()
    """
    done = run_script(code, tmp_path, timeout=120)
    said = r"no Ray head node can be joined at [0-9.:]+ \(.*ray.init twice.*\); check that this machine is one of its nodes"
    assert re.fullmatch(said, done.stdout.strip()), done.stdout + done.stderr


def test_a_machine_on_which_ray_cannot_start_gives_one_line(tmp_path):
    (tmp_path / "file").touch()
    code = """
        import os
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources
        from raypipe.errors import ClusterError

        for folder in ("file", "long" * 25):
            os.environ["RAY_TMPDIR"] = path = f"{os.path.dirname(__file__)}/{folder}"
            os.path.exists(path) or os.mkdir(path)
            try:
                connect("local", Resources(1, 0, 1, 0))
            except ClusterError as error:
                print(error)
    """
    done = run_script(code, tmp_path, timeout=120)
    advice = "set RAY_TMPDIR to a writable folder with a short path, or work without Ray: --address inprocess"
    not_a_folder, too_long = done.stdout.splitlines()
    assert re.fullmatch(rf"Ray cannot start on this machine \(.*Not a directory.*\); {advice}", not_a_folder)
    assert re.fullmatch(rf"Ray cannot start on this machine \(.*path length.*\); {advice}", too_long)


@pytest.mark.ray
def test_a_ray_that_is_started_here_asks_for_a_token_and_shows_itself_on_loopback_alone(tmp_path):
    code = """
        import os
        del os.environ["RAY_USAGE_STATS_ENABLED"]  # set for the tests
        import subprocess, sys, ray, psutil
        from raypipe.cluster import connect
        from raypipe.cluster.protocol import Resources

        JOIN = "import sys; from raypipe.cluster import connect; from raypipe.cluster.protocol import Resources; "
        JOIN += "connect(sys.argv[1], Resources(1, 0, 1, 0)).close(); print('joined')"
        with connect("local", Resources(1, 0, 1, 0)) as cluster:
            head = ray.get_runtime_context().gcs_address
            for mode in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, {}):
                words = [sys.executable, "-c", JOIN, head]
                done = subprocess.run(words, env=os.environ | mode, capture_output=True, text=True)
                print((done.stdout or done.stderr).splitlines()[-1].replace(head, "HEAD"))
            print([answer for _, answer in cluster.map(lambda name: os.getenv(name), ["RAY_USAGE_STATS_ENABLED"])])
            told = [" ".join(child.cmdline()) for child in psutil.Process().children()]
            print(all("--host=127.0.0.1" in words for words in told if "dashboard.py" in words))
    """
    done = run_script(code, tmp_path, timeout=240)
    refused = "raypipe.errors.ClusterError: no Ray head node can be joined at HEAD (UNAUTHENTICATED); set RAY_AUTH_MODE=token "
    lines = done.stdout.splitlines()
    assert [line[: len(refused)] for line in lines[:2]] == [refused] * 2
    assert lines[2:] == ["joined", "['0']", "True"], done.stderr


def test_a_head_that_stays_silent_ends_the_driver_with_one_line(tmp_path):
    code = """
        import os, socket, subprocess, threading
        os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "3"
        from raypipe.cluster import ray_cluster

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        speaker = subprocess.Popen(["sh", "-c", "read -r ended || echo spoke"], stdin=subprocess.PIPE)
        ray_cluster._watch(f"127.0.0.1:{port}", threading.Event(), speaker)
        print("came back")
    """
    done = run_script(code, tmp_path, timeout=240)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"raypipe: the head node of Ray at 127.0.0.1:\d+ has not answered for 1.5 s; what is finished is kept, .*\n",
        done.stderr,
    )


def test_a_head_that_answers_again_in_time_ends_nothing(monkeypatch):
    from raypipe.cluster import ray_cluster

    answers = iter([False, True, False, True])  # never silent for as long as the patience lasts

    def knock(head, refused):
        if not next(answers):
            raise ClusterError("silent")

    waits = iter([False] * 4 + [True])
    now = iter(range(0, 1000, 20))  # seconds: two looks are 20 s apart, the patience is 30 s
    monkeypatch.setattr(ray_cluster, "_knock", knock)
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(ray_cluster.os, "_exit", lambda code: pytest.fail("ended"))
    ray_cluster._watch("head:1", SimpleNamespace(wait=lambda _: next(waits), is_set=lambda: False), None)
    assert next(answers, None) is None


# --- One local Ray for the rest. ---


@pytest.fixture(scope="module")
def local():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # Ray's workers import this module
        with connect("local", TWO) as cluster:
            yield cluster


@pytest.fixture(params=["inprocess", pytest.param("local", marks=pytest.mark.ray)])
def place(request):
    if request.param == "local":
        yield request.getfixturevalue("local")
    else:
        with connect("inprocess", TWO) as cluster:
            yield cluster


def note(folder: Path, name: object) -> int:
    """Leave one more file named after `name`; returns how many there were, this one included."""
    number = len(list(folder.glob(f"{name}.*"))) + 1
    (folder / f"{name}.{number}-{os.getpid()}").touch()
    return number


def square(item: int) -> int:
    return item * item


def fail_on_odd(folder: Path, item: int) -> int:
    note(folder, item)
    if item == 1:
        raise ValueError("first line\nsecond line")
    if item == 3:
        raise ClusteringError("k=600 but only 512 distinct points")
    if item == 5:
        sys.exit(3)
    return item


def timed(item: int) -> tuple[float, float]:
    start = time.time()
    time.sleep(0.02)
    return start, time.time()


def exit_on(folder: Path, times: int, item: int) -> int:
    if item == 2 and note(folder, item) <= times:
        os._exit(1)
    return item * 10


def threads_seen(_: object) -> tuple[set[int], set[str]]:
    from threadpoolctl import threadpool_info

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    _ = np.ones((64, 64)) @ np.ones((64, 64))
    return {library["num_threads"] for library in threadpool_info()}, {os.environ[name] for name in names}


class Squares:
    """A worker of a stream."""

    def __init__(self, folder: Path | None = None, times: int = 0) -> None:
        self.folder, self.times = folder, times
        if folder:
            note(folder, "built")

    def __call__(self, item: dict) -> dict:
        if item["x"] == 3 and self.folder and note(self.folder, 3) <= self.times:
            os._exit(1)
        if item["x"] == "bad":
            raise KeyError("x")
        return {"y": item["x"] ** 2, "pair": (1, 2)}


class Broken:
    def __init__(self) -> None:
        raise OSError("no such model")


class Threads:
    def __call__(self, item: dict) -> dict:
        seen, names = threads_seen(item)
        return {"threads": sorted(seen), "names": sorted(names)}


def sleep_long(*_: object) -> None:
    time.sleep(30)


class Sleeper:
    def __call__(self, item: dict) -> dict:
        time.sleep(30)
        return item


@pytest.mark.parametrize("count", [0, 1, 40])
def test_map_gives_every_result_once(place, count):
    results = list(place.map(square, range(count)))
    assert sorted(results) == [(index, index * index) for index in range(count)]


def test_map_turns_exceptions_into_failures_and_never_retries_them(place, tmp_path):
    results = dict(place.map(partial(fail_on_odd, tmp_path), range(6)))
    assert [results[index] for index in (0, 2, 4)] == [0, 2, 4]
    assert (results[1].message, results[1].kind) == ("ValueError: first line", "error")
    assert "second line" in results[1].trace
    assert "fail_on_odd" in results[1].trace
    assert results[3].message == "k=600 but only 512 distinct points"
    assert results[5].message == "SystemExit: 3"
    assert len(list(tmp_path.iterdir())) == 6


def test_map_runs_no_more_workers_than_asked_and_stops_when_left(place, tmp_path):
    spans = sorted(span for _, span in place.map(timed, range(30)))
    together = max(sum(start <= other[0] < end for other in spans) for start, end in spans)
    assert together <= 2
    results = place.map(partial(fail_on_odd, tmp_path), [0] * 200)
    assert next(results)[1] == 0
    results.close()
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) < 10


def test_workers_have_the_threads_that_were_asked(place):
    in_stream = dict(place.stream(Threads, [{}]))[0]
    assert list(place.map(threads_seen, [0])) == [(0, ({1}, {"1"}))]
    assert in_stream == {"threads": [1], "names": ["1"]}


def test_inprocess_gives_the_threads_back(monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    with connect("inprocess", Resources(1, 0, 3, 0)):
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == (3, "3", "3")
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (before, "7")
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.ray
def test_map_repeats_what_lost_its_process(local, tmp_path):
    results = dict(local.map(partial(exit_on, tmp_path, 1), range(4)))
    assert results == {0: 0, 1: 10, 2: 20, 3: 30}
    assert len(list(tmp_path.glob("2.*"))) == 2


@pytest.mark.ray
def test_map_gives_up_what_always_loses_its_process(local, tmp_path):
    results = dict(local.map(partial(exit_on, tmp_path, 99), range(4)))
    failure = results.pop(2)
    assert results == {0: 0, 1: 10, 3: 30}
    assert failure.kind == "machine"
    assert failure.message.startswith("its process was lost (WorkerCrashedError")
    assert failure.message.endswith("for the 6th time")
    assert len(list(tmp_path.glob("2.*"))) == MAX_DEATHS + 1


def test_stream_gives_every_result_once_through_json(place, tmp_path):
    items = [{"x": number} for number in range(12)]
    results = list(place.stream(partial(Squares, tmp_path), items))
    assert sorted(index for index, _ in results) == list(range(12))
    assert dict(results) == {index: {"y": index**2, "pair": [1, 2]} for index in range(12)}
    assert len(list(tmp_path.glob("built.*"))) <= 2
    assert list(place.stream(Squares, [])) == []


def test_stream_turns_exceptions_into_failures(place):
    results = dict(place.stream(Squares, [{"x": 1}, {"x": "bad"}, {"x": 3}]))
    assert results[0]["y"] == 1
    assert results[2]["y"] == 9
    assert (results[1].message, results[1].kind) == ("KeyError: 'x'", "error")
    results = dict(place.stream(Broken, [{}, {}]))
    assert [results[index].message for index in (0, 1)] == ["OSError: no such model"] * 2
    assert "in __init__" in results[1].trace


@pytest.mark.ray
def test_stream_repeats_what_lost_its_process(local, tmp_path):
    results = list(local.stream(partial(Squares, tmp_path, 1), [{"x": number} for number in range(8)]))
    assert sorted((index, result["y"]) for index, result in results) == [(index, index**2) for index in range(8)]
    assert len(list(tmp_path.glob("3.*"))) == 2


@pytest.mark.ray
def test_stream_gives_up_what_always_loses_its_process(local, tmp_path):
    results = dict(local.stream(partial(Squares, tmp_path, 99), [{"x": number} for number in range(5)]))
    failure = results.pop(3)
    assert {index: result["y"] for index, result in results.items()} == {0: 0, 1: 1, 2: 4, 4: 16}
    assert (failure.message, failure.kind) == ("its process was lost 6 times", "machine")
    assert len(list(tmp_path.glob("3.*"))) == MAX_DEATHS + 1


class Doomed:
    """An actor of the pool that does not live to see its first item."""

    def __init__(self, threads):
        os._exit(1)

    def ready(self): ...


@pytest.mark.ray
def test_a_stream_whose_workers_never_begin_is_given_up(local, monkeypatch):
    from raypipe.cluster import ray_stream

    monkeypatch.setattr(ray_stream, "PoolWorker", Doomed)
    text = r"the stream of 1 items: 6 workers in a row were lost before they could begin \(its process was lost \(.*\)\); look at"
    with pytest.raises(ClusterError, match=text):
        list(local.stream(Squares, [{"x": 1}]))


@pytest.mark.ray
def test_a_stream_that_stalls_is_given_up(local, monkeypatch):
    from raypipe.cluster import ray_stream

    monkeypatch.setattr(ray_stream, "STALL_SECONDS", 2)
    with pytest.raises(ClusterError, match=r"the stream of 1 items: nothing came back for 2 s; expected an answer"):
        list(local.stream(Sleeper, [{}]))


class Hidden:
    """Pickled by a name that no other process can import."""

    def __reduce__(self):
        return __import__, ("module_of_this_process_alone",)


@pytest.mark.ray
def test_a_worker_that_cannot_be_imported_there_fails_every_item(local):
    results = dict(local.stream(partial(Squares, Hidden()), [{}, {}]))
    assert [results[index].kind for index in (0, 1)] == ["error"] * 2
    assert "No module named 'module_of_this_process_alone'" in results[1].message


# --- Points ---


def draw(folder: Path | None, seed: int) -> np.ndarray:
    if folder:
        note(folder, f"read{seed}")
    return np.random.default_rng(seed).normal(size=(50 + seed, 4)).astype(np.float32)


def draw_or_exit(folder: Path, seed: int, times: int = 1) -> np.ndarray:
    if seed == 3 and note(folder, "exit") <= times:
        os._exit(1)
    return draw(folder, seed)


def draw_or_raise(seed: int) -> np.ndarray:
    if seed:
        raise ClusteringError(f"shard {seed} is empty")
    return draw(None, seed)


def project(shard, C_kd):
    assert shard.X_nd.dtype == np.float32
    assert shard.X_nd.flags.c_contiguous
    return shard.index, shard.X_nd @ C_kd.T


def visits(shard):
    shard.state["visits"] = shard.state.get("visits", 0) + 1
    return shard.state["visits"], os.getpid()


def raise_on(shard, indices):
    if shard.index in indices:
        raise ClusteringError(f"no points in shard {shard.index}")


def project_or_exit(shard, C_kd, folder, times):
    if shard.index == 2 and note(folder, "call") <= times:
        os._exit(1)
    return project(shard, C_kd)


C_KD = np.arange(12, dtype=np.float32).reshape(3, 4)


def assert_same(found, expected):
    assert [index for index, _ in found] == [index for index, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


def expected_projections(count):
    return LocalPoints([draw(None, seed) for seed in range(count)]).map(project, C_KD)


def test_points_are_read_once_and_visited_in_shard_order(place, tmp_path):
    with place.points(partial(draw, tmp_path), range(5)) as points:
        assert_same(points.map(project, C_KD), expected_projections(5))
        with pytest.raises(ClusteringError, match=r"^no points in shard 1$"):  # the lowest of those that raise
            points.map(raise_on, (4, 1, 2))
        assert [number for number, _ in points.map(visits)] == [1] * 5
        assert [number for number, _ in points.map(visits)] == [2] * 5
        assert points.map(threads_seen) == [({1}, {"1"})] * 5
    assert len(list(tmp_path.iterdir())) == 5


def test_shards_beyond_a_workers_memory_are_read_at_every_visit(place, tmp_path, monkeypatch):
    reference = fit(LocalPoints([draw(None, seed) for seed in range(6)]), 7, seed=1)
    # Half of the memory is for points and what lies beside them. A shard has 50 to 55 points of 16 bytes, and beside each
    # point twice 20 bytes of labels and 32 of sketches, some 3.6 KB: 13 KB hold that of three shards and some points.
    monkeypatch.setattr(place, "resources", Resources(workers=2, gpus_per_worker=0, threads=1, memory=2 * 13_000))
    with place.points(partial(draw, tmp_path), range(6)) as points:
        found = fit(points, 7, seed=1)
        assert [number for number, _ in points.map(visits)] == [1] * 6  # what lies beside the points stays
    assert found.centroids.tobytes() == reference.centroids.tobytes()
    assert [part.tobytes() for part in found.labels] == [part.tobytes() for part in reference.labels]
    assert found.history == reference.history
    reads = [len(list(tmp_path.glob(f"read{seed}.*"))) for seed in range(6)]
    kept = 3 if place.name.startswith("a new local Ray") else 0
    assert sorted(reads)[:kept] == [1] * kept
    assert sorted(reads)[kept] >= len(reference.history)


def test_points_without_shards(place):
    with place.points(partial(draw, None), []) as points:
        assert points.map(visits) == []


def test_points_raise_what_the_reader_raised(place):
    with pytest.raises(ClusteringError, match=r"^shard 1 is empty$"), place.points(draw_or_raise, range(4)):
        pass


def test_kmeans_has_the_same_bits_everywhere(place):
    reference = fit(LocalPoints([draw(None, seed) for seed in range(4)]), 7, init="k-means++", n_init=2, seed=1)
    with place.points(partial(draw, None), range(4)) as points:
        found = fit(points, 7, init="k-means++", n_init=2, seed=1)
    assert found.centroids.tobytes() == reference.centroids.tobytes()
    assert [part.tobytes() for part in found.labels] == [part.tobytes() for part in reference.labels]
    assert found.inertia == reference.inertia


@pytest.mark.ray
def test_points_survive_workers_killed_between_and_during_calls(local, tmp_path):
    with local.points(partial(draw, tmp_path), range(5)) as points:
        pids = [pid for _, pid in points.map(visits)]
        assert len(set(pids)) == 2
        os.kill(pids[1], signal.SIGKILL)
        assert_same(points.map(project, C_KD), expected_projections(5))
        # The lost worker's shards came back with an empty state, the others kept theirs.
        assert [number for number, _ in points.map(visits)] == [2, 1, 2, 1, 2]
        assert_same(points.map(project_or_exit, C_KD, tmp_path, 1), expected_projections(5))
        assert [number for number, _ in points.map(visits)] == [1, 2, 1, 2, 1]
    assert len(list(tmp_path.glob("call.*"))) == 2
    assert [len(list(tmp_path.glob(f"read{seed}.*"))) for seed in range(5)] == [2] * 5


@pytest.mark.ray
def test_points_survive_a_reader_killed_during_the_fill(local, tmp_path):
    with local.points(partial(draw_or_exit, tmp_path), range(5)) as points:
        assert_same(points.map(project, C_KD), expected_projections(5))
    assert len(list(tmp_path.glob("exit.*"))) == 2


@pytest.mark.ray
def test_points_give_up_a_shard_that_always_loses_its_reader(local, tmp_path):
    text = r"seen on 4 shards: worker 1 was lost 6 times \(Actor.*\); give each worker more memory"
    with pytest.raises(ClusterError, match=text), local.points(partial(draw_or_exit, tmp_path, times=99), range(4)):
        pass


@pytest.mark.ray
def test_points_give_up_a_call_that_always_loses_its_worker(local, tmp_path):
    text = r"project_or_exit on 3 shards: worker 0 was lost 6 times \(Actor.*\); give each worker more memory"
    with local.points(partial(draw, None), range(3)) as points, pytest.raises(ClusterError, match=text):
        points.map(project_or_exit, C_KD, tmp_path, 99)
    assert len(list(tmp_path.glob("call.*"))) == MAX_DEATHS + 1


@pytest.mark.ray
def test_the_second_arrival_of_a_shard_is_dropped(local, monkeypatch):
    from raypipe.cluster import ray_points

    monkeypatch.setattr(ray_points, "limit_threads", lambda threads: None)
    owner = ray_points.Owner(partial(draw, None), {4: 4}, TWO)
    owner.take(4, draw(None, 4))
    assert [number for number, _ in owner.call(visits, ())] == [1]
    owner.take(4, draw(None, 4))
    assert [number for number, _ in owner.call(visits, ())] == [2]


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_kmeans_has_the_same_bits_for_any_number_of_workers(workers, monkeypatch):
    from raypipe.cluster import ray_points

    class Group:
        """The owners of a group in this process, which answer in another order at each call."""

        def __init__(self, shards):
            numbers = range(min(workers, shards))
            specs = [{index: index for index in range(number, shards, len(numbers))} for number in numbers]
            self.owners = [ray_points.Owner(partial(draw, None), of_one, TWO) for of_one in specs]
            self.random = np.random.default_rng(workers)

        def map(self, function, *args):
            order = self.random.permutation(len(self.owners)).tolist()
            parts = {number: iter(self.owners[number].call(function, args)) for number in order}
            return [next(parts[index % len(parts)]) for index in range(9)]

    monkeypatch.setattr(ray_points, "limit_threads", lambda threads: None)
    group = Group(9)
    group.map(seen)
    reference = fit(LocalPoints([draw(None, seed) for seed in range(9)]), 7, n_init=2, seed=1)
    found = fit(group, 7, n_init=2, seed=1)
    assert found.centroids.tobytes() == reference.centroids.tobytes()
    assert [part.tobytes() for part in found.labels] == [part.tobytes() for part in reference.labels]
    assert found.history == reference.history


# --- Time-outs ---


@pytest.mark.ray
def test_a_call_that_never_returns_is_given_up(local):
    import ray

    from raypipe.cluster import ray_wait

    task = ray.remote(num_cpus=1)(sleep_long).remote()
    with pytest.raises(
        ClusterError, match=r"f on 2 shards: nothing came back for 0\.5 s; expected an answer of one of 1"
    ):
        ray_wait.wait_any([task], TWO, 0.5, "f on 2 shards")
    ray.cancel(task, force=True)


@pytest.mark.ray
def test_work_that_no_node_can_hold_is_given_up(local, monkeypatch):
    import ray

    from raypipe.cluster import ray_wait

    monkeypatch.setattr(ray_wait, "ROOM_SECONDS", 0.5)
    monkeypatch.setattr(ray_wait, "POLL_SECONDS", 0.2)
    large = Resources(1, 0.5, 64, 2**50)
    text = (
        "tasks: no place to work for 0.5 s: one worker needs 64 CPUs, 0.5 GPUs, 1048576.0 GiB on one node; "
        r"the largest of 1 nodes have 2 CPUs, 0 GPUs, \d+"
    )
    task = ray.remote(num_cpus=64)(square).remote(2)
    with pytest.raises(ClusterError, match=text):
        ray_wait.wait_any([task], large, 600, "tasks")
    ray.cancel(task)


@pytest.mark.ray
def test_a_result_that_cannot_be_read_is_an_error(local):
    result = dict(local.map(unreadable, [0]))[0]
    assert isinstance(result, Failure)
    assert result.kind == "error"
    assert "cannot be pickled" in result.message + result.trace


class Unpicklable:
    def __reduce__(self):
        raise TypeError("cannot be pickled")


def unreadable(_: int) -> Unpicklable:
    return Unpicklable()


@pytest.mark.ray
def test_a_ray_of_the_user_is_joined_and_left_running(local):
    import ray

    with connect("auto", TWO) as cluster:
        assert cluster.name.startswith("Ray at ")
        assert cluster.name.endswith(" (1 nodes, 2 CPUs)")
        assert list(cluster.map(square, [3])) == [(0, 9)]
    assert ray.is_initialized()
    with pytest.raises(
        ClusterError, match="one worker needs 1 CPUs, 2 GPUs on one node; the largest of 1 nodes have 2"
    ):
        connect("local", Resources(1, 2.0, 1, 0))
    assert ray.is_initialized()
