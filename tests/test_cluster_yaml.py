"""cluster.yaml against Ray's own schema and defaults, without a network."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def prepare(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(config)
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def prepared():
    """What Ray really uses: our file with its defaults filled in."""
    return prepare(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def commands(config, *names):
    return [line for name in names for line in config[name]]


STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
SETUPS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")


def test_a_wrong_key_would_be_noticed():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    with pytest.raises(Exception, match="max_worker"):
        prepare({**config, "max_worker": 1})


def test_the_dashboard_stays_on_loopback_and_both_starts_are_ours(prepared):
    head, worker = (" ; ".join(prepared[name]) for name in STARTS)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--head" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert "0.0.0.0" not in yaml.safe_dump(prepared)


def test_versions_are_pinned_as_in_the_package(prepared):
    from packaging.requirements import Requirement
    from packaging.version import Version

    lines = " ".join(commands(prepared, *SETUPS, *STARTS))
    assert "nightly" not in lines
    assert "dev0" not in lines
    assert "ray-wheels" not in lines
    wanted = [
        Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    for requirement in wanted:
        assert requirement.name in lines, f"{requirement.name} is not installed on the nodes"
    pins = dict(part.strip('"').split("==") for part in lines.split() if "==" in part)
    assert set(pins) == {"ray[default,data]", "torch", "transformers"}
    for name, pin in pins.items():
        requirement = next(item for item in wanted if item.name == name.split("[")[0])
        assert Version(pin) in requirement.specifier
        assert Version(pin) == Version(__import__(requirement.name).__version__.split("+")[0])


def test_workers_are_spot_and_the_head_does_no_work(prepared):
    types = prepared["available_node_types"]
    head = types.pop(prepared["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in " ".join(prepared["head_start_ray_commands"])
    assert head["max_workers"] == 0
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["resources"]["GPU"] >= 1
        assert worker["min_workers"] >= 1
    assert "InstanceMarketOptions" not in head["node_config"]


def test_tokens_and_no_usage_statistics(prepared):
    lines = " ".join(commands(prepared, *SETUPS))
    assert "RAY_AUTH_MODE=token" in lines
    assert "RAY_USAGE_STATS_ENABLED=0" in lines
    assert any(path.endswith(".ray/auth_token") for path in prepared["file_mounts"])
    assert all("raypipe_env" in line for line in commands(prepared, *STARTS))


def test_no_key_of_ours_is_inherited():
    ours = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    prepared = prepare(dict(ours))
    inherited = set(prepared) - set(ours)
    assert inherited <= {"no_restart", "head_node", "worker_nodes"}, inherited
