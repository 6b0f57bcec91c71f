"""Who may import whom: handler -> wire, pipeline -> forms, explain -> tasks; pipeline -> engines; all -> errors."""

import ast
from pathlib import Path

HANDLERS = Path(__file__).parents[2] / "handlers"

# module prefix -> what of hfserve it may import
ALLOWED = {
    "transformer_handler": {
        "hfserve.wire",
        "hfserve.forms",
        "hfserve.pipeline",
        "hfserve.proof",
        "hfserve.config",
        "hfserve.errors",
    },
    "hfserve.pipeline": {
        "hfserve.explain",
        "hfserve.forms",
        "hfserve.isolation",
        "hfserve.pace",
        "hfserve.proof",
        "hfserve.reading",
        "hfserve.views",
        "hfserve.tasks",
        "hfserve.engines",
        "hfserve.config",
        "hfserve.errors",
    },
    "hfserve.reading": {"hfserve.explain", "hfserve.forms", "hfserve.tasks", "hfserve.config", "hfserve.errors"},
    "hfserve.pace": {"hfserve.engines", "hfserve.errors"},
    "hfserve.proof": {"hfserve.tasks", "hfserve.errors"},
    "hfserve.explain": {"hfserve.embedded", "hfserve.isolation", "hfserve.tasks", "hfserve.errors"},
    "hfserve.embedded": {"hfserve.tasks", "hfserve.errors"},
    "hfserve.isolation": {"hfserve.tasks", "hfserve.errors"},
    "hfserve.bodies": {"hfserve.tasks", "hfserve.errors"},
    "hfserve.wire": {"hfserve.bodies", "hfserve.forms", "hfserve.views", "hfserve.tasks", "hfserve.errors"},
    "hfserve.forms": {"hfserve.views", "hfserve.tasks", "hfserve.errors"},
    "hfserve.views": {"hfserve.views"},
    "hfserve.tasks": {"hfserve.tasks", "hfserve.config", "hfserve.errors"},
    "hfserve.engines": {"hfserve.engines", "hfserve.config", "hfserve.errors"},
    "hfserve.config": {"hfserve.errors"},
    "hfserve.errors": set(),
}


def modules():
    for path in HANDLERS.rglob("*.py"):
        name = ".".join(path.relative_to(HANDLERS).with_suffix("").parts).removesuffix(".__init__")
        yield name, imports(ast.parse(path.read_text()))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            # `from hfserve import wire` imports hfserve.wire
            yield from (f"hfserve.{alias.name}" for alias in node.names) if node.module == "hfserve" else [node.module]


def test_imports_go_one_way():
    seen = set()
    for name, imported in modules():
        layer = next((layer for layer in ALLOWED if name == layer or name.startswith(layer + ".")), None)
        seen.add(layer)
        for other in imported:
            if other.startswith("hfserve."):
                allowed = ALLOWED[layer]
                assert any(other == ok or other.startswith(ok + ".") for ok in allowed), f"{name} imports {other}"
    assert seen - {None} == set(ALLOWED), "a layer has gone, or a new module has no rule"


def test_only_the_handler_and_the_wire_may_know_torchserve():
    for name, imported in modules():
        if name not in ("transformer_handler", "hfserve.wire"):
            assert not [other for other in imported if other == "ts" or other.startswith("ts.")], name


def test_the_handler_has_exactly_one_class():
    tree = ast.parse((HANDLERS / "transformer_handler.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["TransformerHandler"]
