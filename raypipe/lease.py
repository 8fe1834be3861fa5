"""One driver at a time: who writes in a run, until when.

The lease is a file of the run that names its holder and when it ends, and is renewed while the holder lives. In a folder a lock of the
operating system goes with it, which ends with the process that holds it, however it ends, and tells at once; the file speaks for holders
on machines that the lock does not reach. An object store has no locks, so a claim is written there, left to settle, and read back: of
claims that cross, the last one written stands and the others withdraw. A claim that took longer to write than claims settle is made
again.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import IO, Any

from raypipe.errors import RunError
from raypipe.storage import Place, published

LEASE, LOCK = ".lease", ".lock"
SECONDS, SETTLED = 60.0, 3.0  # a lease lasts, a claim settles; the machines' clocks must agree to within some seconds
RENEWALS = 4  # in the time that a lease lasts


class Lease:
    """The right to write in a run, held while the block runs; RunError where another driver holds it, or took it meanwhile."""

    def __init__(self, where: Place) -> None:
        self._where, self._place = where, where / LEASE
        self._token, self._until = secrets.token_hex(8), 0.0
        self._ended = threading.Event()
        self._lock: IO[str] | None = None

    def __enter__(self) -> Lease:
        try:
            self._claim()
        except BaseException:
            self._unlock()
            raise
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join()
        try:
            if self._read().get("token") == self._token:
                self._place.unlink(missing_ok=True)
        except OSError:
            pass  # it ends by itself
        finally:
            self._unlock()

    def check(self) -> None:
        """RunError where the lease could not be renewed in time, or another driver has it."""
        if time.time() >= self._until and not self._is_renewed():
            raise RunError(
                f"{self._where}: the right to write there was lost, its lease could not be renewed for {SECONDS:.0f} s or another "
                "driver took it; what is finished is kept, run again"
            )

    def _is_renewed(self) -> bool:
        """Takes an ended lease up again where the lock kept all others out meanwhile, as while this process was suspended."""
        try:
            if self._lock is None or self._read().get("token") != self._token:
                return False
            self._write(time.time() + SECONDS)
        except OSError:
            return False
        return True

    def _claim(self) -> None:
        if isinstance(self._where, Path):
            self._lock = (self._where / LOCK).open("a")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._held(self._read()) from None
        while True:
            started = time.monotonic()
            found = self._read()
            mine = found.get("token") == self._token  # when it took too long
            if not mine and found.get("until", 0.0) > time.time() and not self._is_gone(found):
                raise self._held(found)
            self._write(time.time() + SECONDS)
            if self._lock is not None:
                return
            if time.monotonic() - started < SETTLED:
                break
        time.sleep(SETTLED)
        found = self._read()
        if found.get("token") != self._token:
            raise self._held(found)

    def _is_gone(self, found: dict[str, Any]) -> bool:
        """Whether a holder of this machine lives no more; where its lock is free, it does not."""
        if found["machine"] != socket.gethostname():
            return False
        if self._lock is not None:
            return True
        try:
            os.kill(found["process"], 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # it lives, and is another user's
        return False

    def _held(self, found: dict[str, Any]) -> RunError:
        left = max(0.0, found.get("until", 0.0) - time.time())
        ends = (
            f"its lease ends in {left:.0f} s" if left <= 2 * SECONDS else f"with its clock ahead, remove {self._place}"
        )
        return RunError(
            f"{self._where}: process {found.get('process', '?')} on {found.get('machine', 'this machine')} is writing there; "
            f"wait until it ends, or choose another --run (if it was killed, {ends})"
        )

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS / RENEWALS):
            try:
                # Once it has ended without a lock it is not taken up again: another driver may be about to claim it.
                ended = self._lock is None and time.time() >= self._until
                if ended or self._read().get("token") != self._token:
                    self._until = 0.0
                    return
                self._write(time.time() + SECONDS)
            except OSError:
                continue  # the next time; `check` says when it is too late

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._place.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        kinds = {"process": int, "machine": str, "token": str, "until": float}
        whole = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
        return found if whole else {}

    def _write(self, until: float) -> None:
        content = {"process": os.getpid(), "machine": socket.gethostname(), "token": self._token, "until": until}
        with published(self._place) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        self._until = until

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
