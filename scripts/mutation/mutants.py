"""Small changes of source text, and a sample of those of a package."""

import ast
import difflib
import random
from dataclasses import dataclass
from pathlib import Path

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


def sample_mutants(root: Path, package: str, count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants of a package, drawn without replacement; the same for equal source and seed."""
    mutants: list[Mutant] = []
    for path in sorted((root / "infogan_dist" / package).glob("*.py")):
        mutants += Finder(str(path.relative_to(root)), path.read_text()).mutants
    return random.Random(f"{seed}/{package}").sample(mutants, min(count, len(mutants)))
