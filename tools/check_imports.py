"""Check that the imports of astranet_gevent point one way: down the layers, and never in a circle.

Every module belongs to a layer, and imports from the layers below it only, wherever the import
stands (in a function or under TYPE_CHECKING too: a type is a dependency). Modules that share a
layer may import each other if they are of one package, and not in a circle; there two that know
each other's types may say so under TYPE_CHECKING. A module that no layer names is an error: whoever
adds it says where it belongs.

    check_imports.py [FOLDER]     FOLDER holds astranet_gevent/; the repository's root unless given
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "astranet_gevent"

# From the top. A name stands for the module, and for every module below it if it is a package.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("locust",),
    ("__main__", "cli", "patches"),
    ("server", "http", "testing"),
    ("tls",),
    ("__init__",),
    ("mesh",),
    ("views",),
    ("node",),
    ("announcing", "joining"),
    ("transport",),
    ("protocol",),
    ("config",),
    ("threads",),
    ("address",),
    ("builds", "errors", "greenlet_memory"),
)

# The protocol is driven by its caller: no input, output, clock, dice or log of its own.
PROTOCOL_BANS = {
    "asyncio", "logging", "os", "random", "secrets", "select", "selectors", "signal", "socket",
    "ssl", "subprocess", "threading", "time",
}  # fmt: skip
# Never imported by the package, although they lie beside it.
OUTSIDE = {"demo", "load", "tests", "tools"}


class Import(NamedTuple):
    """One import: `module` imports `target`, both dotted names, at a line of a file."""

    module: str
    target: str
    path: Path
    line: int
    for_types: bool  # under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.module} imports {self.target}"


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    modules = dict(find_modules(root))
    imports = [found for name, path in modules.items() for found in find_imports(name, path, modules)]
    problems = check_layers(modules, imports) + check_bans(imports) + check_circles(imports)
    for problem in problems:
        print(problem, file=sys.stderr)
    inner = sum(found.target in modules for found in imports)
    print(f"{len(modules)} modules, {inner} imports between them: {len(problems)} point the wrong way")
    return 1 if problems else 0


def find_modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Each module's dotted name, and its file."""
    # The folder patches/ is astranet_gevent.patches once it is installed.
    for path in sorted([*(root / PACKAGE).rglob("*.py"), *(root / "patches").rglob("*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] == "patches":
            parts = (PACKAGE, *parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def find_imports(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve(package, node)
            targets = {member_or_module(base, alias.name, modules) for alias in node.names}
        else:
            continue
        for target in sorted(targets):
            yield Import(module, target, path, node.lineno, node in for_types)


def resolve(package: str, node: ast.ImportFrom) -> str:
    """The absolute name of what stands between `from` and `import`."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def member_or_module(base: str, name: str, modules: dict[str, Path]) -> str:
    """`from base import name` imports a module of that name, if there is one, and else base."""
    return f"{base}.{name}" if f"{base}.{name}" in modules else base


def layer(module: str) -> int | None:
    """The index of a module's layer in LAYERS; None if no layer names it."""
    head = module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0] or "__init__"
    for index, names in enumerate(LAYERS):
        if head in names:
            return index
    return None


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def check_layers(modules: dict[str, Path], imports: list[Import]) -> list[str]:
    problems = [
        f"{path}: no layer of tools/check_imports.py names {name}; add it where it belongs"
        for name, path in modules.items()
        if layer(name) is None
    ]
    for found in imports:
        if found.target not in modules or package_of(found.target) == package_of(found.module):
            continue
        source, target = layer(found.module), layer(found.target)
        if source is None or target is None or source < target:
            continue
        problems.append(f"{found}, which lies {'beside' if source == target else 'above'} it")
    return problems


def check_bans(imports: list[Import]) -> list[str]:
    problems = []
    for found in imports:
        top = found.target.partition(".")[0]
        if top in OUTSIDE:
            problems.append(f"{found}, which is no part of the package")
        elif package_of(found.module) == f"{PACKAGE}.protocol" and not may_import(top):
            problems.append(f"{found}, and the protocol does no IO and reads no clock")
    return problems


def may_import(top: str) -> bool:
    """Whether the protocol may import from this top-level package."""
    return top == PACKAGE or (top in sys.stdlib_module_names and top not in PROTOCOL_BANS)


def check_circles(imports: list[Import]) -> list[str]:
    """Each circle once, as the path that closes it."""
    edges: dict[str, list[str]] = {}
    for found in imports:
        if found.target.startswith(PACKAGE) and not found.for_types:
            edges.setdefault(found.module, []).append(found.target)
    problems: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = [*path[path.index(module) :], module]
            problems.append(f"imports in a circle: {' -> '.join(circle)}")
        elif module not in done:
            for target in edges.get(module, ()):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
