"""Measures how many small faults, planted in the package one at a time, the tests find.

    python scripts/mutation_run.py --package training --sample 30 --seed 0 --json mutants.json

Each mutant is one change of the source: a comparison, an arithmetic operator, a constant plus 1, a negated
condition, a removed statement, or two swapped arguments. It is planted in a copy of the repository, whose
fast tests of that package then run up to the first failure. The sample depends only on the seed and on the
source. docs/testing.md explains how to read the result.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

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

COMPARISONS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "is": "is not",
    "in": "not in",
}
COMPARISONS |= {"is not": "is", "not in": "in"}
ARITHMETIC = {
    "+": "-",
    "-": "+",
    "*": "/",
    "/": "*",
    "//": "*",
    "%": "*",
    "**": "*",
    "|": "&",
    "&": "|",
    "@": "*",
}
ARITHMETIC |= {f"{old}=": f"{new}=" for old, new in list(ARITHMETIC.items())}
SYMBOLS: dict[type, str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.Add: "+", ast.Sub: "-", ast.Mult: "*",
    ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.BitOr: "|", ast.BitAnd: "&",
    ast.MatMult: "@", ast.And: "and", ast.Or: "or",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a source file.

    Attributes:
        path: the file, relative to the repository.
        start, end: the characters of its text that are replaced.
        replacement: what they are replaced by.
        kind: of the change.
    """

    path: str
    start: int
    end: int
    replacement: str
    kind: str

    def apply(self, text: str) -> str:
        """Return the changed text of the file."""
        return text[: self.start] + self.replacement + text[self.end :]

    def diff(self, text: str) -> str:
        """Return the change as a unified diff with one line of context."""
        lines = (text.splitlines(), self.apply(text).splitlines())
        return "\n".join(difflib.unified_diff(*lines, self.path, self.path, n=1, lineterm=""))


class Finder(ast.NodeVisitor):
    """Collects the mutants of a file. Annotations, assertions and strings are left alone.

    Args:
        path: the file, relative to the repository.
        text: its source.
    """

    def __init__(self, path: str, text: str):
        self.path, self.text, self.mutants = path, text, []
        self.line_starts = [0]
        for line in text.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.visit(ast.parse(text))

    def _position(self, line: int, column: int) -> int:
        start = self.line_starts[line - 1]
        line_text = self.text[start : self.line_starts[line]]
        return start + len(line_text.encode()[:column].decode())  # ast counts bytes

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore
        return self._position(*start), self._position(*end)

    def _add(self, start: int, end: int, replacement: str, kind: str) -> None:
        self.mutants.append(Mutant(self.path, start, end, replacement, kind))

    def _operator(
        self, left: ast.AST, operator: ast.AST, right: ast.AST, table: dict[str, str], kind: str
    ) -> None:
        symbol = SYMBOLS.get(type(operator), "")
        start, end = self._span(left)[1], self._span(right)[0]
        place = self.text.find(symbol, start, end)
        if symbol in table and place >= 0:
            self._add(place, place + len(symbol), table[symbol], kind)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands[:-1], node.ops, operands[1:], strict=True):
            self._operator(left, operator, right, COMPARISONS, "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not any(isinstance(n, ast.Constant) and n.value is None for n in (node.left, node.right)):
            self._operator(node.left, node.op, node.right, ARITHMETIC, "arithmetic")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._operator(left, node.op, right, {"and": "or", "or": "and"}, "condition")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(*self._span(node), str(not node.value), "constant")
        elif isinstance(node.value, (int, float)):
            self._add(*self._span(node), repr(node.value + 1), "constant")

    def _negate(self, node: ast.If | ast.IfExp | ast.While) -> None:
        start, end = self._span(node.test)
        self._add(start, end, f"not ({self.text[start:end]})", "condition")
        self.generic_visit(node)

    visit_If = visit_IfExp = visit_While = _negate  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        spans = [self._span(a) for a in node.args[:2] if not isinstance(a, ast.Starred)]
        if len(spans) == 2 and self.text[slice(*spans[0])] != self.text[slice(*spans[1])]:
            (a, b), (c, d) = spans
            self._add(a, d, self.text[c:d] + self.text[b:c] + self.text[a:b], "arguments")
        self.generic_visit(node)

    def _statement(self, node: ast.Expr | ast.Assign | ast.AugAssign) -> None:
        """Remove calls and assignments whose names remain defined; messages that inform are no behaviour."""
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        is_target = isinstance(node, ast.Assign) and isinstance(
            node.targets[0], (ast.Attribute, ast.Subscript)
        )
        start, end = self._span(node)
        if self.text.startswith("logger.info", start):
            return
        if is_call or is_target or isinstance(node, ast.AugAssign):
            self._add(start, end, "pass", "statement")
        if isinstance(node, ast.AugAssign):
            symbols = {k: f"{v}=" for k, v in SYMBOLS.items()}
            symbol = symbols.get(type(node.op), "")
            place = self.text.find(symbol, self._span(node.target)[1], end)
            self._add(place, place + len(symbol), ARITHMETIC[symbol], "arithmetic")
        self.generic_visit(node)

    visit_Expr = visit_Assign = visit_AugAssign = _statement  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in [*node.defaults, *(d for d in node.kw_defaults if d is not None)]:
            self.visit(default)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for child in [node.args, *node.body]:
            self.visit(child)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start = self._span(node)[0]
        length = 3 if isinstance(node.op, ast.Not) else 1
        self._add(start, start + length, "", "condition")
        self.generic_visit(node)

    def _skip(self, node: ast.AST) -> None:
        return

    visit_Assert = visit_JoinedStr = _skip  # noqa: N815


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


def sample_mutants(root: Path, package: str, count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants of a package, drawn without replacement; the same for equal source and seed."""
    mutants: list[Mutant] = []
    for path in sorted((root / "infogan_dist" / package).glob("*.py")):
        mutants += Finder(str(path.relative_to(root)), path.read_text()).mutants
    return random.Random(f"{seed}/{package}").sample(mutants, min(count, len(mutants)))


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
        sys.path[0] = os.environ["PYTHONPATH"] = str(root)
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
