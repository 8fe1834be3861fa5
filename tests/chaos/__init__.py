"""Faults on purpose: seeded runs of a tiny grid that are hurt once, resumed, and compared with the undisturbed run.

python -m tests.chaos --kind all --runs 10 --seed 0 --ledger tests/chaos/ledger.jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tiny world of the other tests

import ray  # noqa: F401 - its psutil becomes importable
