"""An object store on loopback that is in trouble for a while: from a request on, for some seconds."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from .drivers import FORK

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_EC2_METADATA_DISABLED": "true",
}
OPTIONS = "scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"


class Store:
    """A server process; its trouble is set from here.

    Attributes:
        options: Of the URIs of its buckets.
    """

    def __init__(self) -> None:
        # Requests so far; the one that trouble begins with, its length in seconds, its delay (none: refused), its beginning.
        self._state: Any = FORK.Array("d", [0.0, -1.0, 0.0, 0.0, 0.0])
        here, there = FORK.Pipe()
        self._process: Any = FORK.Process(target=_serve, args=(self._state, there), daemon=True)
        self._process.start()
        self.options = OPTIONS.format(port=here.recv())

    def trouble(self, after: int, seconds: float, delay: float) -> None:
        """Forgets the requests so far and sets the trouble."""
        self._state[:] = [0.0, float(after), seconds, delay, 0.0]

    def requests(self) -> int:
        """How many there were since trouble was set."""
        return int(self._state[0])

    def began(self) -> bool:
        """Whether the trouble has begun."""
        return bool(self._state[4])

    def close(self) -> None:
        """Ends the server."""
        self._process.terminate()
        self._process.join()


def _serve(state: Any, port: Any) -> None:
    os.environ.update(CREDENTIALS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    answer, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def app(environ: dict[str, Any], start: Any) -> Any:
        now = time.monotonic()
        with lock:
            state[0] += 1
            if state[0] - 1 == state[1]:
                state[4] = now
            troubled, delay = state[4] and now < state[4] + state[2], state[3]
        if troubled and not delay:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if troubled:
            time.sleep(delay)
        return answer(environ, start)

    served = make_server("127.0.0.1", 0, app, threaded=True)
    port.send(served.server_port)
    served.serve_forever()
