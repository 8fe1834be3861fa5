"""Drivers of the tiny grid as processes: forked from one that has imported everything, so that each starts in no time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")
DRIVER_SECONDS = 600.0
"""A driver that takes longer hangs; an undisturbed one takes seconds, and minutes on a machine under load."""
LAST_WORD_SECONDS = 10.0
"""What speaks for a driver that ended without a word may take so long on a machine under load."""
CLONE_NEWNET = 0x40000000


def enter(namespace: str | None) -> None:
    """Puts the calling thread, and what it starts from then on, into a named network namespace."""
    if namespace:
        with open(f"/run/netns/{namespace}", "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _drive(
    orders: Any, fields: dict[str, Any], address: str, env: Mapping[str, str], log: str, namespace: str | None
) -> None:
    """The driver's process: runs the grid into each place that it is told, and says what the command would say."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env)
    tempfile.tempdir = None
    enter(namespace)
    import ray

    from raypipe import pipeline
    from raypipe.errors import RaypipeError
    from raypipe.grid import Grid

    if address != "inprocess":
        ray.init(address=address, log_to_driver=False)
    while (run := orders.recv()) is not None:
        code = 0
        try:
            pipeline.run(Grid(**fields), run, address)
        except RaypipeError as error:
            print(f"raypipe: {error}", flush=True)
            code = 1
        except BaseException:
            traceback.print_exc()
            code = 2
        orders.send(code)


class Driver:
    """A process that drives one run after the other, over one connection to its cluster.

    Args:
        fields: The grid's.
        address: Of the cluster, or `inprocess`.
        env: Environment variables of its own.
        log: The file for what it says.
        namespace: The network namespace where it lives.
    """

    def __init__(
        self, fields: dict[str, Any], address: str, env: Mapping[str, str], log: Path, namespace: str | None = None
    ) -> None:
        self._log, self._said = log, 0
        self._orders, there = FORK.Pipe()
        self.process: Any = FORK.Process(target=_drive, args=(there, fields, address, dict(env), str(log), namespace))
        self.process.start()
        there.close()
        self.pid: int = self.process.pid

    def begin(self, run: str | Path) -> bool:
        """Starts a run; False if the process is gone."""
        self._said = self._log.stat().st_size if self._log.exists() else 0
        try:
            self._orders.send(str(run))
        except BrokenPipeError:
            self.process.join()
            return False
        return True

    def lives(self) -> bool:
        """Whether it is still at work."""
        return not self._orders.poll()

    def wait(self) -> int | None:
        """How the run ended (0, 1 or 2), or the process (a negative signal); None if it had to be killed for taking too long."""
        if not self._orders.poll(DRIVER_SECONDS):
            self.process.kill()
            self.process.join()
            return None
        try:
            return int(self._orders.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            return int(self.process.exitcode)

    def close(self) -> None:
        """Ends the process, if it lives."""
        with suppress(BrokenPipeError):
            self._orders.send(None)
        self.process.join()

    def said(self) -> str:
        """Its reason for stopping, one line; nothing where it gave none."""
        ends = time.monotonic() + LAST_WORD_SECONDS
        while True:
            text = self._log.read_bytes()[self._said :].decode(errors="replace") if self._log.exists() else ""
            reasons = [line for line in text.splitlines() if line.startswith("raypipe: ")]
            if reasons or time.monotonic() > ends:
                return reasons[-1][:300] if reasons else ""
            time.sleep(0.1)


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a forked process and returns its value; this process stays fit for forking."""
    here, there = FORK.Pipe()

    def call() -> None:
        there.send(work(*arguments))

    child = FORK.Process(target=call)
    child.start()
    there.close()
    try:
        return here.recv()
    finally:
        child.join()


def wait_for(found: Callable[[], Any], driver: Driver, seconds: float = DRIVER_SECONDS) -> Any:
    """The first true value of a function that is called several times a second; None once the driver has ended."""
    ends = time.monotonic() + seconds
    while driver.lives() and time.monotonic() < ends:
        if value := found():
            return value
        time.sleep(0.03)
    return None
