"""Measures how many small faults, planted in the package one at a time, the tests find.

    python scripts/mutation_run.py --package training --sample 30 --seed 0 --json mutants.json

Each mutant is one change of the source: a comparison, an arithmetic operator, a constant plus 1, a negated
condition, a removed statement, or two swapped arguments. It is planted in a copy of the repository, whose
fast tests of that package then run up to the first failure. The sample depends only on the seed and on the
source. docs/testing.md explains how to read the result.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from mutation.mutants import Mutant, sample_mutants

ROOT = Path(__file__).resolve().parent.parent
# The quick tests that are run against the mutants of a package.
TESTS = {
    "training": ["tests/training"],
    "model": ["tests/model", "tests/training/test_step.py", "tests/training/test_processes.py"],
    "runtime": ["tests/runtime", "tests/training"],
    "scores": ["tests/scores", "tests/test_scorecard.py::test_scores_are_compared_side_by_side"],
}
LIBRARIES = (
    "torch._dynamo",
    "torch._inductor",
    "accelerate",
    "scipy.stats",
    "sklearn.ensemble",
    "webdataset",
)
COPIED = ("infogan_dist", "tests", "configs", "docs", "scripts", "pyproject.toml", "README.md")
OUTPUT = "pytest.log"  # in the copy: the output of the last tests
LIMIT_FACTOR, LIMIT_EXTRA_S = 3, 30  # time limit of a mutant, from the time that the unchanged package needs


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a mutant.

    Attributes:
        package, path, kind: of the mutant.
        result: killed, survived or timed out.
        seconds: that the tests took.
        diff: the change.
    """

    package: str
    path: str
    kind: str
    result: str
    seconds: float
    diff: str


def import_libraries() -> None:
    """Import what the tests need, once: each run of the tests is forked from this process."""
    for name in LIBRARIES:
        importlib.import_module(name)


def run_tests(root: Path, arguments: list[str], limit: float = math.inf) -> tuple[str, float]:
    """Run tests in a copy of the repository up to the first failure, in a subprocess.

    Args:
        root: the copy.
        arguments: of pytest.
        limit: seconds after which the tests are ended.

    Returns:
        killed, survived or timed out, and the seconds that it took.
    """
    start, status = time.monotonic(), None
    process = os.fork()
    if process == 0:
        _run_pytest(root, arguments)
    while status is None and time.monotonic() - start < limit:
        time.sleep(0.1)
        ended, code = os.waitpid(process, os.WNOHANG)
        status = code if ended else None
    with contextlib.suppress(ProcessLookupError):  # also the processes that the tests started
        os.killpg(process, signal.SIGKILL)
    if status is None:
        os.waitpid(process, 0)
        return "timed out", time.monotonic() - start
    return "killed" if status else "survived", time.monotonic() - start


def _run_pytest(root: Path, arguments: list[str]) -> None:
    """Turn this process into one that runs the tests and ends."""
    status = 1
    try:
        os.setsid()
        os.chdir(root)
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # This script's folder stays on the path: processes that the tests start import the script again.
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = str(root)
        # Bytecode is chosen by time and size of a file, which successive mutants may share.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        status = int(pytest.main(["-x", "-q", "-m", "not rig", "-p", "no:cacheprovider", *arguments]))
    finally:
        os._exit(status)


def measure(root: Path, package: str, mutants: list[Mutant]) -> Iterator[Outcome]:
    """Yield the outcome of each mutant, planted in a copy of the repository.

    Raises:
        RuntimeError: the tests fail without a mutant.
    """
    result, seconds = run_tests(root, TESTS[package])
    if result != "survived":
        output = (root / OUTPUT).read_text()[-2000:]
        raise RuntimeError(f"{package}: the tests fail without a mutant; correct that first\n{output}")
    limit = LIMIT_FACTOR * seconds + LIMIT_EXTRA_S
    for mutant in mutants:
        path = root / mutant.path
        text = path.read_text()
        # Most mutants are killed by the tests of their own module, which are run first.
        own = Path(f"tests/{package}/test_{path.stem}.py")
        first = [str(own)] if (root / own).exists() else []
        path.write_text(mutant.apply(text))
        result, seconds = run_tests(root, [*first, *TESTS[package]], limit)
        path.write_text(text)
        yield Outcome(package, mutant.path, mutant.kind, result, round(seconds, 1), mutant.diff(text))


def summary(outcomes: list[Outcome]) -> str:
    """Return the survivors' diffs, and a line of counts per package. A mutant that times out is found."""
    lines = [f"{o.result}: {o.diff}\n" for o in outcomes if o.result != "killed"]
    for package in dict.fromkeys(o.package for o in outcomes):
        results = [o.result for o in outcomes if o.package == package]
        killed, survived, late = (results.count(r) for r in ("killed", "survived", "timed out"))
        share = (killed + late) / len(results)
        lines.append(f"{package}: {killed} killed, {survived} survived, {late} timed out; {share:.0%} found")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", action="append", choices=TESTS, help="may be repeated; default: all")
    parser.add_argument("--sample", type=int, default=30, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # small networks are slower on several cores
    import_libraries()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            copy = shutil.copy2 if (ROOT / name).is_file() else shutil.copytree
            copy(ROOT / name, root / name)
        for package in args.package or TESTS:
            for outcome in measure(root, package, sample_mutants(root, package, args.sample, args.seed)):
                outcomes.append(outcome)
                place = f"{outcome.path} ({outcome.kind})"
                print(f"{outcome.result:9} {outcome.seconds:5.0f} s  {place}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    print(summary(outcomes))


if __name__ == "__main__":
    main()
