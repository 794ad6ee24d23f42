"""The house: data flows one way, and nothing grows out of sight."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "infogan_dist"
# A module imports only from those above it.
ORDER = [
    "errors", "streams", "config", "checks", "settings", "codes", "networks", "objective",
    "data.cache", "data.fetch", "data.shards", "data.finite", "data.order", "data.loader", "data.sources",
    "engine", "metrics", "checkpoint", "tracking", "pictures",
    "scores.distributed_map", "scores.disentanglement", "scores.features", "scores.subject", "scores.recovery",
    "scores.information", "scores.control", "scores.fidelity", "scores.factors", "scores.evaluation",
    "scores.card", "state", "steps", "run", "trainer", "machine", "examination",
]  # fmt: skip
COMMANDS = [
    "make_shards",
    "train",
    "generate",
    "evaluate",
    "scorecard",
    "doctor",
]  # import any of these, never each other
ONLY = {
    "accelerate": {"engine", "tracking"},
    "wandb": {"tracking"},
    "webdataset": {"data.shards"},
    "omegaconf": {"config", "settings"},
}
PACKAGES = ("infogan_dist", "infogan_dist.data", "infogan_dist.scores")
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{a.name}" for a in node.names} if node.module in PACKAGES else {node.module}
            )
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_import_only_what_stands_above_them(path: Path):
    name = name_of(path)
    allowed = ORDER if name in COMMANDS else ORDER[: ORDER.index(name)]
    own = {i.removeprefix("infogan_dist.") for i in imports(path) if i.startswith("infogan_dist.")} - {
        "__version__"
    }
    assert own <= set(allowed)
    for library, users in ONLY.items():
        if any(i.split(".")[0] == library for i in imports(path)):
            assert name in users


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_say_what_they_are(path: Path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            dataclass_config = node.name.endswith("Config")  # whose fields say it
            assert ast.get_docstring(node) or dataclass_config or node.name == "main", node.name
