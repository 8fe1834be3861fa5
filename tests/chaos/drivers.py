"""Drivers of the tiny grid as processes: forked from one that has imported everything, so that each starts in no time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")
DRIVER_SECONDS = 240.0
"""A driver that takes longer hangs; an undisturbed one takes seconds, and minutes on a machine under load."""
CLONE_NEWNET = 0x40000000


def enter(namespace: str | None) -> None:
    """Puts the calling thread, and what it starts from then on, into a named network namespace."""
    if namespace:
        with open(f"/run/netns/{namespace}", "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _drive(
    fields: dict[str, Any], run: str, address: str, env: Mapping[str, str], log: str, namespace: str | None
) -> None:
    """The driver's process: says what the command would say, and ends as it would."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env)
    tempfile.tempdir = None
    enter(namespace)
    from raypipe import pipeline
    from raypipe.errors import RaypipeError
    from raypipe.grid import Grid

    code = 0
    try:
        pipeline.run(Grid(**fields), run, address)
    except RaypipeError as error:
        print(f"raypipe: {error}", flush=True)
        code = 1
    except BaseException:
        traceback.print_exc()
        code = 2
    sys.stdout.flush()
    os._exit(code)


class Driver:
    """One driver.

    Args:
        fields: The grid's.
        run: Its run.
        address: Of the cluster, or `inprocess`.
        env: Environment variables of its own.
        log: The file for what it says.
        namespace: The network namespace where it lives.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        run: str | Path,
        address: str,
        env: Mapping[str, str],
        log: Path,
        namespace: str | None = None,
    ) -> None:
        self._log, self._said = log, log.stat().st_size if log.exists() else 0
        arguments = (fields, str(run), address, dict(env), str(log), namespace)
        self.process: Any = FORK.Process(target=_drive, args=arguments)
        self.process.start()
        self.pid: int = self.process.pid

    def lives(self) -> bool:
        """Whether it is still at work."""
        return bool(self.process.is_alive())

    def wait(self) -> int | None:
        """How it ended (0, 1, 2 or a negative signal); None if it had to be killed for taking too long."""
        self.process.join(DRIVER_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return None
        return int(self.process.exitcode)

    def said(self) -> str:
        """Its reason for stopping, one line; nothing where it gave none."""
        text = self._log.read_bytes()[self._said :].decode(errors="replace") if self._log.exists() else ""
        reasons = [line for line in text.splitlines() if line.startswith("raypipe: ")]
        return reasons[-1][:300] if reasons else ""


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
