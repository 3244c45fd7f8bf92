"""Tests that could not fail are found by their form."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

ROOT = Path(__file__).parents[2]
BROAD = re.compile(r"\b(RpcError|AioRpcError|Exception|BaseException)\b")
"""Each says that something failed, and not what."""


def test_who_expects_a_failed_call_looks_at_its_error() -> None:
    """A call that fails for any reason at all passes no test: each `pytest.raises` of a broad error has a reader."""
    files = [path for folder in ("cli", "libs", "services", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert not [
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in unread(ast.parse(path.read_text(), path))
    ]


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("with pytest.raises(grpc.RpcError):\n  call()", [2]),
        ("with pytest.raises((ValueError, grpc.aio.AioRpcError)):\n  call()", [2]),
        ("with pytest.raises(Exception, match='x'):\n  call()", [2]),
        ("with server(), pytest.raises(RpcError) as error:\n  call()", [2]),
        ("async with pytest.raises(RpcError) as error:\n  error.add_note('x')", []),
        ("pytest.raises(RpcError, call)", [2]),
        ("with pytest.raises(RpcError) as error:\n  call()\nassert error.value.code()", []),
        ("error = None\nprint(error)\nwith pytest.raises(RpcError) as error:\n  call()", [4]),
        ("with raises(RpcError) as e:\n  call()\nwith raises(RpcError) as e:\n  call()\nassert e.value.code()", [2]),
        ("with pytest.raises(OrderNotFound):\n  call()", []),
    ],
)
def test_an_error_that_nobody_reads_is_found(body: str, lines: list[int]) -> None:
    """Whether it has no name, or one that is not read before it means something else."""
    assert list(unread(ast.parse(f"def test():\n{indent(body, '  ')}"))) == lines


def unread(tree: ast.Module) -> Iterator[int]:
    """The lines on which a broad error is expected that nobody reads in that function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    read = {
        item.context_expr
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.With | ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and _is_read(item.optional_vars, function)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return (call.lineno for call in calls if _expects_broadly(call) and call not in read)


def _expects_broadly(call: ast.Call) -> bool:
    expected = " ".join(map(ast.unparse, call.args[:1]))
    return ast.unparse(call.func).endswith("raises") and bool(BROAD.search(expected))


def _is_read(name: ast.Name, function: ast.AST) -> bool:
    """Whether a name is read between this binding and the next."""
    uses = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == name.id]
    after = sorted((use.lineno, isinstance(use.ctx, ast.Load)) for use in uses if use.lineno > name.lineno)
    return bool(after) and after[0][1]
