# ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/run_grid.py grids/demo.yaml --run /tmp/raypipe-demo
"""Runs a grid on the Ray cluster that the line above submits it to.

The working directory travels with the job, so the package needs no installation there; git-ignored files stay behind.
On several nodes, name a directory that all of them mount after --run (it is checked). Everything after the script's
name is handed to `raypipe run`. With token authentication set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH for the submit too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raypipe.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
