"""The structure of the package: imports go one way, files are small, public names are documented."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "infogan_dist"
# A module imports only from modules of its own package and from packages further down.
PACKAGES = {
    "training": "one training step, the loop, and a run assembled from its parts",
    "preflight": "checks of machine and run before a run starts",
    "inference": "a trained model for Python users",
    "scores": "scores of a trained model",
    "runtime": "processes, devices, checkpoints, logs, pictures: needed by a run, unrelated to InfoGAN",
    "model": "codes, networks, losses: the paper, as functions of tensors",
    "creation": "where images come from, and shard sets of them",
    "data": "reading and ordering images",
    "config": "keys of the configuration, and what is refused",
    "console": "messages and progress on stderr",
    "files": "writing files",
    "launcher": "what torchrun and accelerate launch decide",
    "errors": "errors that a user can correct",
    "credentials": "passwords and tokens in URLs, which messages and records omit",
    "rng": "random numbers",
}
# Within a package, a module imports only from modules further down.
MODULES = {
    "training": (
        "loop", "run", "monitor", "clustering", "graph", "step", "objective", "average", "state",
        "schedule",
    ),
    "preflight": ("examine", "run", "data", "disk", "machine", "communication", "config", "finding"),
    "scores": (
        "seed_runs", "command_runner", "compare", "card", "page", "evaluation", "requirements",
        "factors", "conditional", "fidelity", "feature_cache", "control", "information", "recovery",
        "matching", "scored_model", "code_reader", "features", "output", "score", "disentanglement",
        "predictors", "interventions", "representation", "classifier", "distributed_map",
        "intervals",
    ),
    "runtime": (
        "run_folder", "tracking", "run_logs", "checkpoint", "pictures", "metrics", "distributed", "failure",
        "device", "batch_norm",
    ),
    "model": ("clustering", "views", "losses", "networks", "layers", "latents", "codes"),
    "creation": (
        "existing", "reshard", "index", "tar_index", "sortedness", "write", "encode", "shard_folder",
        "selection", "sources", "idx", "arrays", "cifar", "parquet", "dataset", "source", "folder",
        "problems",
    ),
    "data": (
        "neighbours", "finite", "resident", "loader", "shard_dataset", "transfer", "augment",
        "order", "shards", "class_names", "tars", "manifest_fields", "images", "fetch", "filesystems",
        "transport", "hub", "s3", "cache", "urls",
    ),
    "config": (
        "origin", "load", "overrides", "help", "validate", "batch_share", "schema", "clustering", "codes",
        "fields",
    ),
}  # fmt: skip
COMMANDS = ("doctor", "evaluate", "generate", "make_shards", "scorecard", "train")  # import no other command
LIBRARIES = {
    "accelerate": ("runtime",),
    "wandb": ("runtime.tracking",),
    "webdataset": ("data",),
    "omegaconf": ("config",),
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
MAX_LINES, MAX_FUNCTION_LINES = 330, 60


def module_of(path: Path) -> str:
    """Return a file's module below `infogan_dist`, such as `model.codes`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it; for `from package import x`, `package.x`."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = PACKAGE.parent / node.module.replace(".", "/")
            modules |= {f"{node.module}.{a.name}" for a in node.names} if base.is_dir() else {node.module}
    return modules


def own_imports(path: Path) -> set[str]:
    modules = {
        m.removeprefix("infogan_dist.") for m in imported_modules(path) if m.startswith("infogan_dist.")
    }
    return modules - {"__version__"}


def is_allowed(module: str, imported: str) -> bool:
    """Whether `module` may import `imported`, both below `infogan_dist`."""
    package, imported_package = module.split(".")[0], imported.split(".")[0]
    packages = list(PACKAGES)
    if package in COMMANDS:
        return imported_package not in COMMANDS
    if imported_package in COMMANDS:
        return False
    if package == imported_package:
        order = MODULES[package]
        return order.index(imported.split(".")[1]) > order.index(module.split(".")[1])
    return packages.index(imported_package) > packages.index(package)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_module_has_its_place(path: Path):
    package, _, name = module_of(path).partition(".")
    places = "\n".join(
        f"  {package}/: {content}" for package, content in PACKAGES.items() if package in MODULES
    )
    if name:
        assert package in MODULES, (
            f"infogan_dist/{package}/ is not a known package; the packages are\n{places}"
        )
        assert name in MODULES[package], (
            f"infogan_dist/{package}/{name}.py is new: if it belongs there, add it to MODULES in this test, "
            f"above all modules that it imports; else move it to the package in which it belongs:\n{places}"
        )
    else:
        assert package in (*COMMANDS, *PACKAGES), (
            f"infogan_dist/{package}.py is new: a command line belongs into COMMANDS in this test, any other "
            f"module into the package in which it belongs:\n{places}"
        )


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path: Path):
    module = module_of(path)
    for imported in own_imports(path):
        assert is_allowed(module, imported), (
            f"{module} imports {imported}, which is not below it; move what both need further down: "
            f"{', '.join(PACKAGES)} (top to bottom)"
        )


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_libraries_are_imported_in_their_package_only(path: Path):
    module = module_of(path)
    for library, users in LIBRARIES.items():
        if any(m.split(".")[0] == library for m in imported_modules(path)):
            assert any(module == user or module.startswith(f"{user}.") for user in users), library


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_public_names_have_docstrings(path: Path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            is_schema = node.name.endswith("Config")  # whose fields carry their meaning
            assert ast.get_docstring(node) or is_schema or node.name == "main", node.name
