"""The rules of this code that no linter knows: `python3 scripts/check_house_rules.py [FOLDER]`, by default `app`.

Each rule is a function, and its docstring tells the mistake that it prevents.
"""

import argparse
import ast
import builtins
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

APP: Final = Path(__file__).resolve().parents[1] / "app"
LONGEST_BODY: Final = 30
LONGEST_FILE: Final = 300
BUILTINS: Final = frozenset(name for name in dir(builtins) if not name.startswith("_"))
CLOCKS: Final = frozenset({"now", "utcnow"})
ENVIRONMENT: Final = frozenset({"environ", "environb", "getenv"})
QUERIES: Final = frozenset({"find", "find_one", "find_all", "find_many", "aggregate", "get_pymongo_collection"})
# Decorators that leave what a function does as it is.
NEUTRAL: Final = frozenset({"staticmethod", "classmethod", "override"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]


class Module(NamedTuple):
    """A parsed file and its place below the folder that is checked, such as `services/user_service.py`."""

    place: str
    tree: ast.Module
    lines: int

    def is_in(self, *places: str) -> bool:
        """Whether it is one of these files, or lies in one of these folders, which end with a slash."""
        return any(self.place == place or (place.endswith("/") and self.place.startswith(place)) for place in places)

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=APP)
    folder: Path = parser.parse_args().folder.resolve()
    files = sorted(folder.rglob("*.py"))
    if not files:
        sys.exit(f"There is no Python file in {folder}.")
    findings = [finding for file in files for finding in _findings(file, folder)]
    print("\n".join(findings), end="\n" if findings else "")
    sys.exit(1 if findings else 0)


def _findings(file: Path, folder: Path) -> list[str]:
    text = file.read_text()
    module = Module(file.relative_to(folder).as_posix(), ast.parse(text, file), len(text.splitlines()))
    found = sorted({finding for rule in RULES for finding in rule(module)})
    return [f"{folder.name}/{module.place}:{line}: {message}" for line, message in found]


def no_pure_forward(module: Module) -> Iterator[Finding]:
    """A function that hands its own parameters on adds a hop for the reader and decides nothing: call what it calls."""
    for function in module.functions() if module.is_in("services/", "crud/") else ():
        if _is_forward(function):
            yield function.lineno, f"`{function.name}` only forwards its parameters; call what it calls"


def no_http_below_the_edge(module: Module) -> Iterator[Finding]:
    """An `HTTPException` in the middle has a body of its own and means nothing to a script; raise an `AppError`."""
    if not module.is_in("api/errors.py", "api/middleware.py"):
        for line in _mentions(module, {"HTTPException"}):
            yield (
                line,
                "HTTPException belongs to api/errors.py and api/middleware.py; raise an error of core/exceptions.py",
            )


def no_second_clock(module: Module) -> Iterator[Finding]:
    """A time from elsewhere has microseconds or no zone, so it differs from what the database gives back."""
    if not module.is_in("core/clock.py"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
                yield node.lineno, f".{node.attr} belongs to core/clock.py; use its utc_now()"


def no_hidden_setting(module: Module) -> Iterator[Finding]:
    """A variable read elsewhere is in no list of settings, is not validated, and surprises who runs the service."""
    if not module.is_in("core/config.py", "__main__.py"):
        for line in _mentions(module, ENVIRONMENT):
            yield line, "the environment is read in core/config.py; make it a setting"


def no_query_outside_of_crud(module: Module) -> Iterator[Finding]:
    """A query elsewhere forgets the filter of ownership and the index that the named one in crud/ has.

    `crud_user.find(...)` is such a named one. A backup knows no owners: it reads everything.
    """
    if module.is_in("crud/", "db/", "backup/"):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in QUERIES and not _is_crud(node.value):
            yield node.lineno, f".{node.attr} belongs to crud/ and db/; name the query there"


def no_transaction_outside_of_services(module: Module) -> Iterator[Finding]:
    """The use case owns the transaction. One begun below it commits half of a change, one above it spans the reply."""
    for function in module.functions() if not module.is_in("services/") else ():
        if "transactional" in _decorators(function):
            yield function.lineno, f"`{function.name}` is transactional outside of services/"


def no_late_import(module: Module) -> Iterator[Finding]:
    """An import inside a function hides a cycle between modules, and fails at the first call, not at the start."""
    for function in module.functions():
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node.lineno, "an import belongs to the top of the file"


def no_shadowed_builtin(module: Module) -> Iterator[Finding]:
    """A parameter called `id` or `type` says not of what, and the next line that needs the builtin calls it."""
    for node in ast.walk(module.tree):
        for parameter in _parameters(node.args) if isinstance(node, Function | ast.Lambda) else ():
            if parameter.arg in BUILTINS:
                yield parameter.lineno, f"the parameter `{parameter.arg}` shadows a builtin; say of what it is"


def no_long_function(module: Module) -> Iterator[Finding]:
    """What does not fit on half a screen does more than one thing, and is read by nobody to its end."""
    for function in module.functions():
        body = _body(function)
        length = (function.end_lineno or 0) - _first_line(body[0]) + 1 if body else 0
        if length > LONGEST_BODY:
            yield function.lineno, f"the body of `{function.name}` has {length} lines, more than {LONGEST_BODY}"


def no_long_file(module: Module) -> Iterator[Finding]:
    """A file that grows takes in whatever is near. Split it by use case while that is easy."""
    if module.lines > LONGEST_FILE:
        yield 1, f"the file has {module.lines} lines, more than {LONGEST_FILE}"


RULES: Final[tuple[Callable[[Module], Iterable[Finding]], ...]] = (
    no_pure_forward,
    no_http_below_the_edge,
    no_second_clock,
    no_hidden_setting,
    no_query_outside_of_crud,
    no_transaction_outside_of_services,
    no_late_import,
    no_shadowed_builtin,
    no_long_function,
    no_long_file,
)


def _is_forward(function: Function) -> bool:
    """Whether its body is one call of its own parameters, untouched. A decorator that does something is a reason."""
    body = _body(function)
    value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return | ast.Expr) else None
    call = value.value if isinstance(value, ast.Await) else value
    if not isinstance(call, ast.Call) or _decorators(function) - NEUTRAL:
        return False
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    plain = [argument.value if isinstance(argument, ast.Starred) else argument for argument in given]
    names = {parameter.arg for parameter in _parameters(function.args)}
    return all(isinstance(argument, ast.Name) and argument.id in names for argument in plain)


def _body(function: Function) -> list[ast.stmt]:
    """The statements after the docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def _first_line(statement: ast.stmt) -> int:
    """A decorated function begins at its first decorator, not at its `def`."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [parameter for parameter in every if parameter is not None]


def _decorators(function: Function) -> set[str]:
    """The last names of the decorators: `transactional` for `@transactional`, `@mongo.transactional` and a call."""
    plain = [item.func if isinstance(item, ast.Call) else item for item in function.decorator_list]
    return {_name(item) for item in plain}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_crud(receiver: ast.AST) -> bool:
    return isinstance(receiver, ast.Name) and receiver.id.startswith("crud_")


def _mentions(module: Module, names: Iterable[str]) -> Iterator[int]:
    """The lines that import one of the names, under whatever other name, or reach it through its module."""
    for node in ast.walk(module.tree):
        imported = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        reached = {node.attr} if isinstance(node, ast.Attribute) else set()
        if (imported | reached) & set(names) and isinstance(node, ast.ImportFrom | ast.Attribute):
            yield node.lineno


if __name__ == "__main__":
    main()
