"""Small ways to break a function, found in its syntax and not in its text.

A break is a kind and which of the places it can be made at, counted from 1 in the order of the text: "edge 2" takes the
second comparison of a function's that has an edge, `<` or `<=` and their like, and moves it.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "SOURCE", "broken", "marked", "places_of"]

SOURCE = Path(__file__).parent.parent / "src" / "foveate"
FLIPPED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
FLIPPED |= {new: old for old, new in FLIPPED.items()}
MOVED = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.LtE: ast.Lt, ast.GtE: ast.Gt}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
SWAPPED |= {ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}
OTHER = {"min": "max", "max": "min", "amin": "amax", "amax": "amin"}
DROPPED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)
NOT_RUN = {"annotation", "returns", "decorator_list", "type_params"}

Change = Callable[[Any], ast.AST | None]
"""What a node becomes; None if it is none of that kind."""


def _flip(node, to=FLIPPED):
    if not isinstance(node, ast.Compare) or type(node.ops[0]) not in to:
        return None
    node.ops[0] = to[type(node.ops[0])]()
    return node


def _edge(node):
    return _flip(node, MOVED)


def _swap(node):
    if not isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) or type(node.op) not in SWAPPED:
        return None
    node.op = SWAPPED[type(node.op)]()
    return node


def _left(node):
    if isinstance(node, ast.BoolOp):
        return node.values[0]
    return node.left if isinstance(node, ast.BinOp) else None


def _right(node):
    if isinstance(node, ast.BoolOp):
        return node.values[-1]
    return node.right if isinstance(node, ast.BinOp) else None


def _more(node):
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        return None
    return ast.Constant(node.value + 1)


def _opposite(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
        return node.operand
    return ast.Constant(not node.value) if isinstance(node, ast.Constant) and isinstance(node.value, bool) else None


def _minmax(node):
    if isinstance(node, ast.Name) and node.id in OTHER:
        return ast.Name(OTHER[node.id], ast.Load())
    if not isinstance(node, ast.Attribute) or node.attr not in OTHER:
        return None
    node.attr = OTHER[node.attr]
    return node


def _inside(node):
    """A call's first argument; what a method is called on, where it is called without one."""
    if not isinstance(node, ast.Call) or (node.args and isinstance(node.args[0], ast.Starred)):
        return None
    if node.args:
        return node.args[0]
    return node.func.value if isinstance(node.func, ast.Attribute) else None


def _receiver(node):
    """What a method is called on, in the place of the call."""
    return node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None


def _condition(node, value):
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        node.test = ast.Constant(value)
        return node
    if not isinstance(node, ast.comprehension) or not node.ifs:
        return None
    node.ifs = [ast.Constant(value)]
    return node


def _drop(node):
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return ast.Pass() if isinstance(node, DROPPED) and not text else None


def _none(node):
    gives = isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None"
    return ast.Return(ast.Constant(None)) if gives else None


def _unnamed(node):
    """A call without its last named argument."""
    return None if not isinstance(node, ast.Call) or not node.keywords else (node.keywords.pop(), node)[1]


KINDS: dict[str, Change] = {
    "flip": _flip, "edge": _edge, "swap": _swap, "left": _left, "right": _right, "more": _more, "opposite": _opposite,
    "minmax": _minmax, "inside": _inside, "receiver": _receiver, "drop": _drop, "none": _none, "unnamed": _unnamed,
    "never": lambda node: _condition(node, False), "always": lambda node: _condition(node, True),
}  # fmt: skip
"""What a break does to the code."""


def function(tree: ast.AST, name: str) -> ast.AST:
    """The function or class of this qualified name."""
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        inside = (node for node in ast.walk(tree) if isinstance(node, kinds) and node is not tree)
        tree = next(node for node in inside if node.name == part and not _is_overload(node))
    return tree


def _is_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether it is a type's word on a function that follows, and never runs."""
    return any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """A function's nodes that run, in the order of the text."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in NOT_RUN:
                yield child
                yield from nodes(child)


def places(tree: ast.AST, kind: str) -> list[ast.AST]:
    """Where a function can be broken so."""
    return [node for node in nodes(tree) if KINDS[kind](_copied(node)) is not None]


def _copied(node: ast.AST) -> ast.AST:
    """A copy with lists of its own, which is all that a break writes to; of a whole function it would take long."""
    made = copy.copy(node)
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            setattr(made, name, list(value))
    return made


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _parsed(key: str) -> tuple[Path, ast.Module, ast.AST]:
    """The file that `module:function` is in, its tree, and the function in it."""
    path, name = _file_of(key), key.split(":")[1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return path, tree, function(tree, name)


def _file_of(key: str) -> Path:
    return SOURCE / (key.split(":")[0].replace(".", "/") + ".py")


@cache
def _read(path: Path) -> ast.Module:
    """A file's tree, to be looked at and not to be changed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def places_of(key: str, kind: str) -> list[ast.AST]:
    """Where `module:function` can be broken so."""
    return places(function(_read(_file_of(key)), key.split(":")[1]), kind)


def broken(key: str, place: str) -> tuple[Path, str, str]:
    """The file that `module:function` is in, its broken source, and what has become what.

    Args:
        key: The function.
        place: Kind of break and which place, such as "edge 2".
    """
    path, tree, inside = _parsed(key)
    kind, number = place.split()
    old = places(inside, kind)[int(number) - 1]
    new = KINDS[kind](_copied(old))
    said = f"{_said(old)} -> {_said(new)}"
    _Replace(old, new).visit(tree)
    return path, ast.unparse(ast.fix_missing_locations(tree)), said


def marked(places_by_number: list[tuple[str, str]], call: str) -> dict[Path, str]:
    """Files whose drawn places say that they are reached: before each place's statement stands `call.format(number)`.

    Args:
        places_by_number: `module:function`, kind of break and which place.
        call: One statement with "{}" in it.
    """
    files: dict[Path, ast.Module] = {}
    wanted = []
    for number, (key, place) in enumerate(places_by_number):
        path = _file_of(key)
        tree = files.setdefault(path, ast.parse(path.read_text(encoding="utf-8")))
        inside = function(tree, key.split(":")[1])
        kind, which = place.split()
        wanted.append((inside, places(inside, kind)[int(which) - 1], ast.parse(call.format(number)).body[0]))
    for inside, node, statement in wanted:
        before, block = _statement_of(inside, node)
        block.insert(block.index(before), statement)
    return {path: ast.unparse(ast.fix_missing_locations(tree)) for path, tree in files.items()}


def _statement_of(inside: ast.AST, node: ast.AST) -> tuple[ast.stmt, list[ast.stmt]]:
    """The innermost statement of a function that holds a node, and the block that it stands in.

    What stands in the signature runs when the file is read: then it is the first statement behind the docstring.
    """
    found = inside.body[1 if ast.get_docstring(inside) is not None and len(inside.body) > 1 else 0], inside.body
    for outer in ast.walk(inside):
        for block in (value for _, value in ast.iter_fields(outer) if isinstance(value, list)):
            for one in block:
                if isinstance(one, ast.stmt) and any(part is node for part in ast.walk(one)):
                    found = one, block  # ast.walk goes inwards, so the last one found is the innermost
    return found


def _said(node: ast.AST) -> str:
    """A node's first line."""
    return ast.unparse(node).strip().splitlines()[0][:80]
