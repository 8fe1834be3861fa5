"""The number of threads of the numerical libraries, so that results do not depend on where a worker runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def limit_threads(threads: int) -> Callable[[], None]:
    """Give BLAS, OpenMP and torch `threads` threads in this process.

    Libraries that are loaded later read the environment variables; those already loaded are told (torch is not
    imported for it). Our numba kernels run on the thread that calls them and need no limit.

    Returns:
        A function that puts everything back.
    """
    from threadpoolctl import threadpool_limits

    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    torch = sys.modules.get("torch")
    torch_before = torch.get_num_threads() if torch else 0  # read first: the limits reach torch's OpenMP as well
    limits = threadpool_limits(limits=threads)
    if torch:
        torch.set_num_threads(threads)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        limits.restore_original_limits()
        if torch:
            torch.set_num_threads(torch_before)

    return restore
