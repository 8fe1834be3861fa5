# ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/run_grid.py grids/demo.yaml --run runs/demo
"""Runs a grid on the Ray cluster that the line above submits it to.

The working directory travels with the job, so the package needs no installation there; git-ignored files stay behind.
RUN must be a directory that every node can write (a shared disk or an object store); everything after the script's
name is handed to `raypipe run`. With token authentication set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH for the submit too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raypipe.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
