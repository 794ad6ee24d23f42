"""Sweeps of W&B: the trainer reads the command lines that W&B's agent builds from their configs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from infogan_dist.config.load import flatten, read_config
from infogan_dist.config.schema import Config
from tests.conftest import ROOT

FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
each_sweep = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
# Values of all types. The agent formats them as Python values, not as YAML.
VALUES = {
    "codes.style": None,
    "checkpoint.keep_every": None,
    "train.compile": False,
    "tracking.progress": True,
    "tracking.trackers": ["wandb", "tensorboard"],
    "objective.q_step": "generator",
    "optim.generator.lr": 1e-05,
    "networks.recognition": [{"kind": "dense", "out": 16, "grid": False, "then": ["lrelu"]}],
}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def agent_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function that returns the command line which W&B's own agent starts for given values.

    The environment variables that the agent sets remain set, as in the run that it starts.
    """
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "of another run")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(wandb_agent, "AgentProcess", SimpleNamespace)

    def command(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
        agent: Any = wandb_agent.Agent(api=None, queue=None)
        agent._sweep_command = list(sweep["command"])
        args = {key: {"value": value} for key, value in values.items()}
        agent._command_run({"run_id": "abc", "program": sweep["program"], "args": args})
        return agent._run_processes["abc"].command

    return command


def trainer_arguments(command: list[str]) -> list[str]:
    """Return the trainer's arguments in such a command line."""
    assert command[0] == "/usr/bin/env"
    return command[command.index("infogan_dist.train") + 1 :]


@each_sweep
def test_a_sweep_begins_with_its_command_purpose_and_time(path: Path):
    head = path.read_text().splitlines()[:4]
    assert head[0] == f"# wandb sweep configs/sweeps/{path.name}"
    assert head[1].startswith("# Finds ")
    assert head[2].startswith("# Time: ")
    assert not head[3].startswith("#")


@each_sweep
@pytest.mark.filterwarnings("ignore:Valid config keys have changed in V2")  # of wandb, on import
def test_a_sweep_matches_the_schema_of_wandb(path: Path):
    sweeps = pytest.importorskip("sweeps", reason="pip install --no-deps sweeps jsonref")
    assert sweeps.schema_violations_from_proposed_config(read(path)) == []
    invalid = {**read(path), "method": "guess"}
    assert sweeps.schema_violations_from_proposed_config(invalid)


@each_sweep
def test_the_trainer_receives_exactly_the_suggested_values(path: Path, agent_command: Any):
    sweep = read(path)
    ranges = [p.get("values") or [p["min"], p["max"]] for p in sweep["parameters"].values()]
    assert all(low < high or isinstance(low, str) for low, *_, high in ranges)
    for pick in (min, max):
        values = dict(zip(sweep["parameters"], map(pick, ranges), strict=True))
        config = flatten(read_config(trainer_arguments(agent_command(sweep, values))))
        assert {key: config[key] for key in values} == values
        assert config["run"] == "runs/sweep/abc"


@each_sweep
def test_the_metric_of_a_sweep_is_logged(path: Path, agent_command: Any):
    sweep = read(path)
    config = read_config(trainer_arguments(agent_command(sweep, {})))
    kind, _, name = sweep["metric"]["name"].partition("/")
    if kind == "bound":
        assert name in config.codes
    else:
        assert (kind, config.data.test is not None) == ("score", True)
        assert config.train.steps is not None
        assert config.train.steps % (config.train.evaluate_every or 0) == 0


def test_nulls_booleans_lists_and_tables_reach_the_trainer_unchanged(agent_command: Any, tmp_path: Path):
    sweep = read(ROOT / "configs/sweeps/grid.yaml")
    swept = read_config(trainer_arguments(agent_command(sweep, VALUES)))
    file = tmp_path / "values.yaml"
    file.write_text(yaml.dump(nested(VALUES)))
    plain = ["configs/mnist.yaml", str(file), "run=runs/sweep/abc", "train.steps=2000"]
    assert swept == read_config(plain)
    assert list(swept.codes) == ["digit"]
    assert flatten(swept)["optim.generator.lr"] == 1e-05 != flatten(Config())["optim.generator.lr"]


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return `{"train.steps": 3}` in the form of a YAML config: `{"train": {"steps": 3}}`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
