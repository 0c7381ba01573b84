"""Check that every test can fail: it asserts something, or calls a helper of its file that does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
CHECKS = {"raises", "warns", "fail"}  # functions of pytest
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(node: ast.expr) -> str:
    """The last part of a dotted name, such as `raises` of `pytest.raises`; else an empty string."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def asserts(function: Function, helpers: set[str]) -> bool:
    """Whether the function has an assertion, or calls one of `helpers`."""
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and name_of(node.func) in helpers | CHECKS)
        or (isinstance(node, ast.Call) and name_of(node.func).startswith("assert_"))
        for node in ast.walk(function)
    )


def is_fixture(function: Function) -> bool:
    return any(
        name_of(mark.func if isinstance(mark, ast.Call) else mark) == "fixture"
        for mark in function.decorator_list
    )


def without_assertion(text: str) -> list[str]:
    """The names of tests in a file that check nothing: only an exception of the product could make them fail."""
    tree, helpers = ast.parse(text), set[str]()
    others = [function for function in functions(tree) if not function.name.startswith("test")]
    while more := {f.name for f in others if asserts(f, helpers)} - helpers:
        helpers |= more  # a helper may assert through another helper
    return [
        function.name
        for function in functions(tree)
        if function.name.startswith("test") and not is_fixture(function) and not asserts(function, helpers)
    ]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.stem)
def test_every_test_asserts_something(path: Path) -> None:
    assert without_assertion(path.read_text(encoding="utf-8")) == []


def test_a_test_that_asserts_nothing_is_detected() -> None:
    text = """
import numpy as np, pytest

def direct(): assert 1
def indirect(): direct()
def idle(): print()

def test_a(): assert 1
def test_b(): indirect()
def test_c():
    with pytest.raises(ValueError): int("x")
def test_d(): np.testing.assert_allclose(1, 1)
def test_e(): idle()
class TestF:
    def test_f(self): idle()
@pytest.fixture(scope="session")
def test_split(): idle()
"""
    assert without_assertion(text) == ["test_e", "test_f"]
