"""The command: fault runs into the ledger, or the ledger as a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .ledger import KINDS, LEDGER, append, read, table


def main() -> int:
    """Runs what is asked for; 1 if a run was not clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kind", nargs="+", default=["all"], choices=("all", *KINDS), help="of fault, one or more")
    parser.add_argument("--runs", type=int, default=1, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="the file that grows")
    parser.add_argument("--table", action="store_true", help="print the ledger as a table, and run nothing")
    asked = parser.parse_args()
    if asked.table:
        print(table(read(asked.ledger)), end="")
        return 0
    from .harness import World, fault_runs, refusal

    clean = True
    with World() as world:
        for kind in KINDS if "all" in asked.kind else asked.kind:
            if why := refusal(kind, world):
                print(f"{kind}: left out: {why}", flush=True)
                continue
            for entry in fault_runs(world, kind, range(asked.seed, asked.seed + asked.runs)):
                append(asked.ledger, entry)
                print(entry, flush=True)
                clean &= entry.clean
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
