"""The uses of names in a module of source code: which name is meant, and what is taken of it."""

import re
from typing import Any

import libcst as cst
from libcst.metadata import (
    ExpressionContext,
    ExpressionContextProvider,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    Scope,
    ScopeProvider,
)

from truenorm.tools.migrate_code import equals
from truenorm.tools.migrate_code.finder import Access, Binding, Finder, Path
from truenorm.tools.migrate_code.names import is_module


class Reader:
    """A module, the scopes in it, and the uses of the names that are bound there."""

    def __init__(self, module: cst.Module, finder: Finder) -> None:
        wrapper = MetadataWrapper(module)
        self.module = wrapper.module
        self.scopes = wrapper.resolve(ScopeProvider)
        self.parents = wrapper.resolve(ParentNodeProvider)
        self.positions = wrapper.resolve(PositionProvider)
        self.annotations: set[cst.CSTNode] = set()  # those in quotes that were read
        self.module.visit(finder)
        # The names in the code that are read, by what they are called. LibCST's own references
        # leave out those between two imports that bind parts of one package.
        contexts = wrapper.resolve(ExpressionContextProvider)
        self.names: dict[str, list[cst.Name]] = {}
        for name in finder.names:
            read = contexts.get(name) is not ExpressionContext.STORE
            if read and self.scopes.get(name) is not None:
                self.names.setdefault(name.value, []).append(name)

    def _scope(self, node: cst.CSTNode) -> Scope:
        scope: Scope | None = self.scopes[node]
        assert scope is not None  # every statement and every name that is read has one
        return scope

    def _owner(self, binding: Binding) -> Scope:
        """The scope in which the import binds its name."""
        scope: Scope = next(iter(self._lookup(binding.statement, binding.local))).scope
        return scope

    def _lookup(self, node: cst.CSTNode, name: str) -> Any:
        """The assignments that a name refers to at a node."""
        return self._scope(node)[name]

    @staticmethod
    def _assignments(owner: Scope, local: str) -> list[Any]:
        return [
            assignment
            for assignment in owner.assignments
            if assignment.name == local or assignment.name.startswith(f"{local}.")
        ]

    def _accesses(self, bindings: list[Binding]) -> list[Access]:
        """The uses of the name, each once."""
        first = bindings[0]
        start = () if isinstance(first.statement, cst.Import) else first.path
        if isinstance(first.statement, cst.Import) and first.alias.asname is not None:
            start = first.path
        owner = self._owner(first)
        accesses = [
            self._read(name, start)
            for name in self.names.get(first.local, ())
            if owner in {assignment.scope for assignment in self._lookup(name, first.local)}
        ]
        texts = {
            reference.node
            for assignment in self._assignments(owner, first.local)
            for reference in assignment.references
            if isinstance(reference.node, cst.BaseString)
        }
        self.annotations |= texts
        for text in texts:
            accesses += self._read_text(text, first.local, start)
        return accesses

    def _read_text(self, node: cst.CSTNode, local: str, start: Path) -> list[Access]:
        """The uses in an annotation in quotes."""
        found = re.findall(rf"\b{local}\b((?:\.\w+)*)", self.module.code_for_node(node))
        return [
            Access((*start, *path.split(".")[1:]), [], len(start), node, in_text=True)
            for path in found
        ]

    def _read(self, name: cst.BaseExpression, start: Path) -> Access:
        """One use: of tfa.layers.TLU the path is ("layers", "TLU")."""
        path: list[str] = list(start)
        nodes: list[cst.BaseExpression] = [name]
        while (part := self._part(nodes[-1])) is not None:
            path.append(part[0])
            nodes.append(part[1])
        parent = self.parents[nodes[-1]]
        is_none_test = False
        if len(nodes) == 1 and isinstance(parent, cst.Comparison):
            others = [one.comparator for one in parent.comparisons]
            is_none_test = [getattr(one, "value", None) for one in others] == ["None"]
        call = parent if isinstance(parent, cst.Call) and parent.func is nodes[-1] else None
        return Access(
            tuple(path),
            nodes,
            len(start),
            name,
            is_none_test=is_none_test,
            is_equal=equals.is_equal(tuple(path), call),
            call=call,
            uses=self._uses_by_another_name(nodes[-1], tuple(path)),
        )

    def _part(self, node: cst.BaseExpression) -> tuple[str, cst.BaseExpression] | None:
        """What is taken of a module, and the node of that: `.name`, or getattr(module, "name")."""
        parent = self.parents[node]
        if isinstance(parent, cst.Attribute) and parent.value is node:
            return parent.attr.value, parent
        call = self.parents[parent] if isinstance(parent, cst.Arg) else None
        if (
            isinstance(call, cst.Call)
            and isinstance(call.func, cst.Name)
            and call.func.value == "getattr"
            and call.args[0] is parent
            and len(call.args) > 1
            and isinstance(name := call.args[1].value, cst.SimpleString)
            and name.raw_value.isidentifier()
        ):
            return name.raw_value, call
        return None

    def _uses_by_another_name(self, node: cst.CSTNode, path: Path) -> list[Access] | None:
        """The uses of L after `L = tfa.layers`, where nothing else is called so; or None."""
        statement = self.parents[node]
        if not (is_module(path) or len(path) == 1) or not isinstance(statement, cst.Assign):
            return None
        target = statement.targets[0].target
        if len(statement.targets) > 1 or not isinstance(target, cst.Name):
            return None
        owners = {one.scope for one in self._lookup(target, target.value)}
        if len(owners) != 1 or len(self._assignments(owner := owners.pop(), target.value)) != 1:
            return None
        uses = [
            self._read(name, path)
            for name in self.names.get(target.value, ())
            if owner in {assignment.scope for assignment in self._lookup(name, target.value)}
            and not self._is_part(name)
        ]
        return uses or None

    def _is_part(self, node: cst.Name) -> bool:
        """Whether a name is no variable: an attribute, a keyword or a part of an import."""
        parent = self.parents[node]
        if isinstance(parent, cst.Attribute):
            return parent.attr is node or self._is_part_of_import(parent)
        if isinstance(parent, cst.Arg):
            return parent.keyword is node
        return self._is_part_of_import(node)

    def _is_part_of_import(self, node: cst.CSTNode) -> bool:
        while isinstance(node, (cst.Name, cst.Attribute, cst.ImportAlias, cst.AsName)):
            node = self.parents[node]
        return isinstance(node, (cst.Import, cst.ImportFrom))
