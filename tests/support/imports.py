"""Who imports whom, read from syntax trees: imports inside functions and under TYPE_CHECKING count like all others."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, frozenset[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module and package below ``root``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(root: Path) -> Graph:
    """Module -> the modules below ``root`` that it imports, wherever in its file it does so."""
    files = modules(root)
    return {name: frozenset(_imported(name, path, files)) - {name} for name, path in files.items()}


def _imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # "from package import name" is of the module of that name, where there is one
            wanted = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        yield from (one for one in wanted if one in known)


def circles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that reach each other, each sorted (strongly connected components, found as Tarjan does)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return sorted(found)


def between_rooms(graph: Graph, package: str) -> Graph:
    """The graph of what stands directly in ``package``: a package below it imports what any module in it does."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        room = _room(module, package)
        if room is not None:
            found = (_room(other, package) for other in imported)
            rooms.setdefault(room, set()).update(other for other in found if other not in (None, room))
    return {room: frozenset(others) for room, others in rooms.items()}


def _room(module: str, package: str) -> str | None:
    inside = module.removeprefix(f"{package}.")
    return None if inside == module else f"{package}.{inside.partition('.')[0]}"


def layers(lines: Iterable[str]) -> list[set[str]]:
    """The layers of an import-linter contract, high to low; names of one line are independent of each other."""
    return [{name.strip().strip("()") for name in line.split("|")} for line in lines]


def against(graph: Graph, ranked: list[set[str]], package: str) -> list[str]:
    """Arrows within ``package`` that do not point down: to a higher layer, or to another member of the same one."""
    level = {f"{package}.{name}": number for number, names in enumerate(ranked) for name in names}
    arrows = []
    for module, imported in graph.items():
        for other in sorted(imported):
            ours, theirs = (".".join(name.split(".")[:2]) for name in (module, other))
            if ours != theirs and ours in level and theirs in level and level[theirs] <= level[ours]:
                arrows.append(f"{module} -> {other}")
    return arrows
