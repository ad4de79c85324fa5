"""Loop fission: a formula's step cut into short loops over a tile's lanes, one for each heavy primitive.

Evaluated whole, a step with a power in it is one chain of some 160 vector instructions for a vector
of lanes, more than a core's scheduler sees at once: it waits for the chain's end before it starts
the next vector. A loop that holds one logarithm only overlaps many of them. So the step's text is
lowered to a list of single operations, no two of them alike, and the list is cut before each heavy
primitive; what one loop leaves for another lies in slots of the tile's memory.

The bits are those of the step as it stands. A compiler fuses a product with the sum that alone
reads it, and can't across two loops, so an operation stands where its result is first asked for:
what is stored in a slot has been read before. Which of two products is fused into their sum is up to
the order in which a compiler ranks all that they are made of, so such a sum stays in the first loop.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from fractal_streams.dialect import PRIMITIVES

HEAVY = ("log2", "exp2", "atan2", "sin", "cos")
STATE = ("zr", "zi", "cr", "ci", "pr", "pi")
ADVANCE = """@numba.njit(inline="always")  # LLVM would inline it too late to see that nothing else holds s
def advance(s, n, p):"""
ARRIVE = """@numba.njit(nogil=True, forceinline=True, fastmath=FLAGS, error_model="numpy")
def arrive(s, k, zr, zi, cr, ci, pr, pi, n, p):"""
WHOLE = f"""{ADVANCE}
    pass


{ARRIVE}
    return step(zr, zi, cr, ci, pr, pi, n, p)
"""
MOST = 1000
"""Operations of a step that is cut; a longer one stays whole."""

OPERATORS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.USub: "-", ast.UAdd: "+", ast.Invert: "~", ast.BitAnd: "&",
    ast.BitOr: "|", ast.BitXor: "^", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==",
    ast.NotEq: "!=",
}  # fmt: skip
"""No division: a compiler makes products of two by the same number, and could not across two loops."""


class Whole(Exception):
    """The step stays one loop: there is nothing heavy in it, or something that this file doesn't know."""


@dataclass(frozen=True)
class Operation:
    """One value of a step: a leaf, or an operation on values before it.

    text: with a `{}` for each operand; varies: from lane to lane; truth: a boolean, which no slot holds.
    """

    text: str
    operands: tuple[int, ...] = ()
    varies: bool = False
    truth: bool = False

    @property
    def heavy(self) -> bool:
        return self.varies and self.text.partition("(")[0] in HEAVY


class Lowering(ast.NodeVisitor):
    """The operations of the function `step` of a module's text, each once, and the two that it returns.

    Visiting an expression gives the place of its operation, or a tuple of such.
    """

    def __init__(self, text: str) -> None:
        body = ast.parse(text).body
        self.functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
        self.constants = {node.targets[0].id for node in body
                          if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
        self.operations: list[Operation] = []
        self.places: dict[Operation, int] = {}
        self.asked = 0
        self.scope: dict[str, Any] = {name: self.place(Operation(name, varies=True)) for name in STATE}
        self.scope["n"] = self.place(Operation("n"))
        result = self.visit(self.functions["step"].body[-1].value)  # type: ignore[attr-defined]
        if not isinstance(result, tuple) or len(result) != 2 or not all(self.number(part) for part in result):
            raise Whole
        self.result: tuple[int, int] = result

    def place(self, operation: Operation) -> int:
        self.asked += 1
        if self.asked > MOST:
            raise Whole
        if operation not in self.places:
            self.places[operation] = len(self.operations)
            self.operations.append(operation)
        return self.places[operation]

    def number(self, value: Any) -> bool:
        return isinstance(value, int) and not self.operations[value].truth

    def operation(self, text: str, *operands: Any, truth: bool = False) -> int:
        if not all(isinstance(operand, int) for operand in operands):
            raise Whole
        varies = any(self.operations[operand].varies for operand in operands)
        return self.place(Operation(text, operands, varies, truth))

    def generic_visit(self, node: ast.AST) -> Any:
        raise Whole

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id in self.scope:
            return self.scope[node.id]
        if node.id not in self.constants:
            raise Whole
        return self.place(Operation(node.id))

    def visit_Subscript(self, node: ast.Subscript) -> int:
        return self.place(Operation(ast.unparse(node)))  # p[3]: only the adapter's text has such

    def visit_Tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.visit(part) for part in node.elts)

    def visit_BinOp(self, node: ast.BinOp) -> int:
        left, right, sign = self.visit(node.left), self.visit(node.right), OPERATORS.get(type(node.op))
        logic = isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor)
        if sign is None or self.number(left) == logic or self.number(right) == logic:
            raise Whole
        return self.operation(f"{{}} {sign} {{}}", left, right, truth=logic)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> int:
        value, logic = self.visit(node.operand), isinstance(node.op, ast.Invert)
        if self.number(value) == logic:
            raise Whole
        return self.operation(f"{OPERATORS[type(node.op)]}{{}}", value, truth=logic)

    def visit_Compare(self, node: ast.Compare) -> int:
        left, right = self.visit(node.left), self.visit(node.comparators[0])
        return self.operation(f"{{}} {OPERATORS[type(node.ops[0])]} {{}}", left, right, truth=True)

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id in self.scope:
            raise Whole
        name, given = node.func.id, [self.visit(argument) for argument in node.args]
        if name in PRIMITIVES:
            return self.operation(f"{name}({', '.join(['{}'] * len(given))})", *given)
        if name not in self.functions:
            raise Whole
        return self.inlined(self.functions[name], given)

    def inlined(self, function: ast.FunctionDef, given: list[Any]) -> Any:
        """What one of the module's functions returns for these values."""
        names = [argument.arg for argument in function.args.args]
        self.asked += 1
        if self.asked > MOST or len(names) != len(given) or ast.unparse(function.args) != ", ".join(names):
            raise Whole  # more than plain arguments
        outer, self.scope = self.scope, dict(zip(names, given, strict=True))
        for statement in function.body:
            if isinstance(statement, ast.Return) and statement.value:
                result = self.visit(statement.value)
                self.scope = outer
                return result
            if not isinstance(statement, ast.Assign):
                raise Whole
            value = self.visit(statement.value)
            for target in statement.targets:
                self.assign(target, value)
        raise Whole

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.scope[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, tuple) and len(value) == len(target.elts):
            for part, inner in zip(target.elts, value, strict=True):
                self.assign(part, inner)
        else:
            raise Whole


@dataclass(frozen=True)
class Fission:
    """A step in loops. slots: rows of a tile's memory that they need; text: the functions `advance` and `arrive`.

    `advance(s, n, p)` runs all loops but the last over a tile; `arrive(s, k, zr, zi, cr, ci, pr, pi, n, p)`
    is the last one's body, which returns the next z of lane k.
    """

    slots: int
    text: str


@dataclass(frozen=True)
class Plan:
    """Which loop evaluates what. at: the loop of each operation that varies; reads: the loops that read it."""

    operations: list[Operation]
    result: tuple[int, int]
    at: dict[int, int]
    reads: dict[int, set[int]]
    last: int

    def line(self, place: int) -> str:
        operation = self.operations[place]
        return f"v{place} = {operation.text.format(*map(self.name, operation.operands))}"

    def name(self, place: int) -> str:
        operation = self.operations[place]
        return f"v{place}" if operation.operands else operation.text

    def fixed(self, asked: set[int]) -> list[str]:
        """Lines for what is the same in all lanes."""
        need, waiting = set(), [place for place in asked if place not in self.at]
        while waiting:
            place = waiting.pop()
            need.add(place)
            waiting += self.operations[place].operands
        return [self.line(place) for place in sorted(need) if self.operations[place].operands]


def reached(operations: list[Operation], result: tuple[int, int]) -> dict[int, int]:
    """How often each operation that varies is read, of those that the result needs."""
    uses = dict.fromkeys(result, 1)
    for place in range(len(operations) - 1, -1, -1):
        if place in uses:
            for operand in operations[place].operands:
                uses[operand] = uses.get(operand, 0) + 1
    return {place: uses[place] for place in sorted(uses) if operations[place].varies}


def planned(operations: list[Operation], result: tuple[int, int]) -> Plan:
    """A loop for each heavy operation, sines and cosines of the same number together; the kernel's own is the last.

    Every other operation goes to the first loop that reads it, a truth value to each that does.
    """
    uses = reached(operations, result)
    order: dict[Any, int] = {}
    for place in uses:
        if operations[place].heavy:
            order.setdefault(_alike(operations[place]), len(order))
    first = 0
    while first < len(order) - 1:
        plan = _placed(operations, result, uses, {key: max(0, loop - first) for key, loop in order.items()})
        unsafe = [plan.at[place] for place in uses if _fusible(operations, uses, place)]
        if not any(unsafe):
            return plan
        first += max(unsafe)
    raise Whole


def _alike(operation: Operation) -> Any:
    name = operation.text.partition("(")[0]
    return ("turn" if name in ("sin", "cos") else name, *operation.operands)


def _fusible(operations: list[Operation], uses: dict[int, int], place: int) -> bool:
    """Whether an operation is a sum of two products, either of which could be fused into it."""
    parts = operations[place].operands
    return operations[place].text == "{} + {}" and all(
        uses.get(part) == 1 and operations[part].text == "{} * {}" for part in parts
    )


def _placed(operations: list[Operation], result: tuple[int, int], uses: dict[int, int], order: dict[Any, int]) -> Plan:
    last = max(order.values())
    reads: dict[int, set[int]] = {place: set() for place in uses}
    for place in result:
        if place in reads:
            reads[place].add(last)
    at = {}
    for place in sorted(uses, reverse=True):
        operation = operations[place]
        at[place] = order[_alike(operation)] if operation.heavy else min(reads[place])
        for operand in operation.operands:
            if operand in reads:
                reads[operand] |= reads[place] if operation.truth else {at[place]}
    return Plan(operations, result, at, reads, last)


def fission(text: str) -> Fission | None:
    """The step of a generated module in loops; None where it stays whole."""
    try:
        lowered = Lowering(text)
        plan = planned(lowered.operations, lowered.result)
    except (Whole, RecursionError):
        return None
    slots: dict[int, int] = {}
    width, lines, constant = 0, [], set[int]()
    for loop in range(plan.last + 1):
        inside = [place for place in plan.at if lowered.operations[place].operands and (
            loop in plan.reads[place] if lowered.operations[place].truth else loop == plan.at[place])]  # fmt: skip
        inside.sort()
        asked = {operand for place in inside for operand in lowered.operations[place].operands}
        asked |= {*plan.result} if loop == plan.last else set()
        loaded = sorted(place for place in asked if place in slots and place not in inside)
        body = [f"v{place} = s[KEPT + (ACCUMULATORS + {slots[place]}) * LANES + k]" for place in loaded]
        body += [plan.line(place) for place in inside]
        if loop == plan.last:
            break
        slots = {place: slot for place, slot in slots.items() if max(plan.reads[place]) > loop}
        for place in inside:
            if not lowered.operations[place].truth and max(plan.reads[place]) > loop:
                slots[place] = min({*range(len(slots) + 1)} - {*slots.values()})
                body.append(f"s[KEPT + (ACCUMULATORS + {slots[place]}) * LANES + k] = v{place}")
        width = max(width, len(slots))
        state = [lowered.operations[place].text for place in sorted(asked & {*plan.at})]
        state = [f"{name} = s[{name.upper()} + k]" for name in state if name in STATE]
        lines += ["    for k in range(LANES):", *("        " + line for line in state + body)]
        constant |= asked
    before = ["    " + line for line in plan.fixed(constant)]
    after = ["    " + line for line in plan.fixed(asked) + body]
    end = f"    return {', '.join(map(plan.name, plan.result))}"
    return Fission(width, "\n".join([ADVANCE, *before, *lines, "", "", ARRIVE, *after, end, ""]))
