"""Things found by name: each is one file that registers one object; no list elsewhere."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from firefly_cl.errors import UnknownName
from firefly_cl.own_files import import_own_files

T = TypeVar("T")


class Registry:
    """The objects of one kind, each registered in a file of its own in one of the packages.

    Names are read from the source without importing it, so that listing them is fast;
    a file is imported when its object is asked for.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind = kind
        self.packages = packages
        self._objects: dict[str, Any] = {}
        self._options: dict[str, type | None] = {}

    def register(self, name: str, *, options: type | None = None) -> Callable[[T], T]:
        """Register the decorated object under a literal `name`.

        options: the dataclass of its options; `firefly-cl tune` looks there for what is `searched`.
        """

        def add(obj: T) -> T:
            self._objects[name], self._options[name] = obj, options
            return obj

        return add

    @cached_property
    def _files(self) -> dict[str, tuple[str, Path]]:
        found = {}
        for package in self.packages:
            spec = importlib.util.find_spec(package)
            for folder in (spec and spec.submodule_search_locations) or ():
                for path in sorted(Path(folder).glob("*.py")):
                    for name in _registered_names(path):
                        found[name] = (f"{package}.{path.stem}", path)
        return found

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        import_own_files()
        return sorted(set(self._files) | set(self._objects))

    def describe(self, name: str) -> str:
        """The first line of the docstring of the file that registers `name`.

        Of a file that registers several, that of the object, if it has one.
        """
        self._check(name)
        if name not in self._files:
            return (self._objects[name].__doc__ or "").strip().partition("\n")[0]
        tree = ast.parse(self._files[name][1].read_text())
        registered = dict(_registered(tree))
        own = ast.get_docstring(registered[name]) if len(registered) > 1 else None
        return (own or ast.get_docstring(tree) or "").partition("\n")[0]

    def get(self, name: str) -> Any:
        """The object registered as `name`; raises UnknownName with the nearest name."""
        self._check(name)
        if name not in self._objects:
            importlib.import_module(self._files[name][0])
        return self._objects[name]

    def options(self, name: str) -> type | None:
        """The options dataclass of what is registered as `name`, if it has one; as `get`."""
        self.get(name)
        return self._options.get(name)

    def _check(self, name: str) -> None:
        names = self.names()
        if name not in names:
            raise UnknownName(f"unknown {self.kind} {name!r}: {suggestion(name, names)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The known name nearest to `name`, or all of them, as the end of an error message."""
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return f"did you mean {near!r}?"
    return f"choose from {', '.join(names)}" if names else "there are none"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to `name`, if one is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return near[0] if near else None


def _registered_names(path: Path) -> list[str]:
    return [name for name, _ in _registered(ast.parse(path.read_text()))]


def _registered(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Names that the decorators of a file register, each with its function or class."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for call in node.decorator_list:
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Attribute)
                    and call.func.attr == "register"
                    and call.args
                    and isinstance(call.args[0], ast.Constant)
                    and isinstance(call.args[0].value, str)
                ):
                    yield call.args[0].value, node
