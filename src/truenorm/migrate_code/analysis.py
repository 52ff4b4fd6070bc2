"""What has to change in a module of source code, and what is left to the user.

A name that an import of TensorFlow Addons binds, such as tfa, has uses. Where truenorm covers all
of them, the import alone is changed: `import truenorm as tfa`. Where it covers some, the import
stays for the others, `import truenorm` is put beside it, and the covered uses become
`truenorm.layers.X`. What cannot be followed stays as it is and is reported.
"""

import dataclasses
import re
from typing import Any

import libcst as cst
from libcst.helpers import get_full_name_for_node
from libcst.metadata import (
    Assignment,
    ExpressionContext,
    ExpressionContextProvider,
    ImportAssignment,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    Scope,
    ScopeProvider,
)

from truenorm.migrate_code.names import (
    COVERED,
    NOTHING,
    REPLACEMENTS,
    covered_name,
    find_replacement,
    is_module,
)

ADDONS = "tensorflow_addons"
Path = tuple[str, ...]  # what comes after tensorflow_addons: ("layers", "TLU")


@dataclasses.dataclass(frozen=True, order=True)
class Use:
    """A use that stays: its line, what is used, what to do about it, and the cell in a notebook."""

    line: int
    name: str
    advice: str
    cell: int | None = None

    def __str__(self) -> str:
        cell = "" if self.cell is None else f"cell {self.cell}:"
        return f"{cell}{self.line}: {self.name}: {self.advice}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """A name that an import statement binds, and the path below tensorflow_addons it stands for."""

    statement: cst.Import | cst.ImportFrom
    alias: cst.ImportAlias
    local: str
    path: Path

    @property
    def keeps_its_name(self) -> bool:
        """Whether truenorm has a module of this path that the import can bind to the same name."""
        dotted = isinstance(self.statement, cst.Import) and self.alias.asname is None
        return not dotted and (not self.path or self.path in [(part,) for part in COVERED])


@dataclasses.dataclass(frozen=True)
class Access:
    """A use of a bound name: the path it stands for, and the nodes of its parts."""

    path: Path
    nodes: list[cst.BaseExpression]  # the nodes of path[:start], path[:start + 1], ...
    start: int  # how much of the path the name itself stands for
    node: cst.CSTNode
    in_text: bool = False  # in an annotation in quotes, which is not rewritten
    is_none_test: bool = False

    @property
    def covered(self) -> bool:
        """Whether it is a class that truenorm covers."""
        return covered_name(self.path) is not None


class Analysis:
    """What is to be changed in a module, and what is left."""

    def __init__(self, module: cst.Module) -> None:
        wrapper = MetadataWrapper(module)
        self.module = wrapper.module
        self.scopes = wrapper.resolve(ScopeProvider)
        self.parents = wrapper.resolve(ParentNodeProvider)
        self.positions = wrapper.resolve(PositionProvider)
        self.uses: list[Use] = []
        self.annotations: set[cst.CSTNode] = set()  # those in quotes that were read
        self.replacements: dict[cst.CSTNode, cst.BaseExpression] = {}
        # What becomes of each alias that changes: "swap", `import truenorm as tfa`; "rename",
        # `import truenorm`; "beside", both that and the old one.
        self.edits: dict[cst.ImportAlias, str] = {}
        finder = Finder()
        self.module.visit(finder)
        self.name = self._free_name()
        # The names in the code that are read, by what they are called. LibCST's own references
        # leave out those between two imports that bind parts of one package.
        contexts = wrapper.resolve(ExpressionContextProvider)
        locals_ = {binding.local for binding in finder.bindings}
        self.names: dict[str, list[cst.Name]] = {}
        for name in finder.names:
            read = contexts.get(name) is not ExpressionContext.STORE
            if name.value in locals_ and read and self.scopes.get(name) is not None:
                self.names.setdefault(name.value, []).append(name)
        groups: dict[tuple[int, str], list[Binding]] = {}
        for binding in finder.bindings:
            if self._is_class(binding):
                self._treat_class(binding)
            else:
                owner = self._owner(binding)
                groups.setdefault((id(owner), binding.local), []).append(binding)
        for bindings in groups.values():
            self._treat_module(bindings)
        for node, what, advice in finder.remarks:
            if node not in self.annotations:
                self._report(node, what, advice)

    def _free_name(self) -> str:
        """The name for `import truenorm`: another one where that is taken."""
        taken = {
            assignment.name
            for scope in set(self.scopes.values())
            if scope is not None
            for assignment in scope.assignments
            if not self._imports_truenorm(assignment)
        }
        name = "truenorm"
        while name in taken:
            name += "_"
        return name

    @staticmethod
    def _imports_truenorm(assignment: Any) -> bool:
        return isinstance(assignment, ImportAssignment) and imports_truenorm(assignment.node)

    # --- names that are bound to a class or function

    @staticmethod
    def _is_class(binding: Binding) -> bool:
        return isinstance(binding.statement, cst.ImportFrom) and (
            covered_name(binding.path) is not None
            or (len(binding.path) > 1 and not is_module(binding.path))
            or binding.path[0] in REPLACEMENTS
        )

    def _treat_class(self, binding: Binding) -> None:
        if covered_name(binding.path) is not None:
            self.edits[binding.alias] = "swap"
            return
        self._report_path(binding.alias, binding.path)
        for access in self._accesses([binding]):
            self._report_path(access.node, access.path)

    # --- names that are bound to a module

    def _treat_module(self, bindings: list[Binding]) -> None:
        accesses = self._accesses(bindings)
        left = [access for access in accesses if not access.covered and not access.is_none_test]
        covered = [access for access in accesses if access.covered]
        # `import tensorflow_addons.optimizers` and `from tensorflow_addons import optimizers`
        foreign = [one for one in bindings if one.path and not is_module(one.path)]
        deep = any(covered_name(access.path) != 1 for access in covered)
        replaceable = not left and not foreign
        if replaceable and not deep and all(b.keeps_its_name for b in bindings):
            self._edit(bindings, "swap")
            return
        for access in left:
            self._report_left(access)
        for binding in foreign:
            if not any(a.path[: len(binding.path)] == binding.path for a in left):
                self._report_path(binding.alias, binding.path)
        hand = [access for access in covered if access.in_text]
        obstacle = self._obstacle(bindings)
        if obstacle is not None:
            hand = covered
        elif hand:
            obstacle = "left as it is, in a string: write it with truenorm"
        renamed = [access for access in covered if access not in hand]
        # Where a failed import leaves None, or the name is compared with None, it must stay.
        optional = self._others(bindings) or any(access.is_none_test for access in accesses)
        if replaceable and not hand and not optional:
            self._edit(bindings, "rename")
        elif replaceable and not deep and all(not binding.path for binding in bindings):
            self._edit(bindings, "swap")  # import truenorm as tensorflow_addons
            return
        elif renamed:
            self._edit(bindings, "beside")
        for access in renamed:
            self._replace(access)
        for access in hand:
            self._report(access.node, ".".join(("tfa", *access.path)), str(obstacle))

    def _edit(self, bindings: list[Binding], edit: str) -> None:
        self.edits |= {binding.alias: edit for binding in bindings}

    def _obstacle(self, bindings: list[Binding]) -> str | None:
        """Why the uses of a name cannot be renamed, or None."""
        owner = self._owner(bindings[0])
        if any(self.scopes[binding.statement] is not owner for binding in bindings):
            return "left as it is, as the name is declared global: write it with truenorm"
        if len({binding.path for binding in bindings if binding.keeps_its_name}) > 1:
            return "left as it is, as the name is bound to several modules: write it with truenorm"
        for assignment in self._others(bindings):
            if not self._is_none(assignment):
                line = self.positions[assignment.node].start.line
                return (
                    f"left as it is, as the name is bound on line {line} too: "
                    "write it with truenorm"
                )
        return None

    def _others(self, bindings: list[Binding]) -> list[Any]:
        """The assignments to the name that are no imports of TensorFlow Addons."""
        statements = {binding.statement for binding in bindings}
        assignments = self._assignments(self._owner(bindings[0]), bindings[0].local)
        return [assignment for assignment in assignments if assignment.node not in statements]

    def _is_none(self, assignment: Assignment) -> bool:
        """Whether an assignment is `name = None`, as after a failed import."""
        target = self.parents.get(assignment.node)
        statement = self.parents.get(target) if isinstance(target, cst.AssignTarget) else None
        value = statement.value if isinstance(statement, cst.Assign) else None
        return isinstance(value, cst.Name) and value.value == "None"

    def _replace(self, access: Access) -> None:
        """Put truenorm in the place of the modules before the class."""
        at = covered_name(access.path)
        if access.start == 0 and at == 1:
            self.replacements[access.nodes[0]] = cst.Name(self.name)
        else:
            assert at is not None  # the access is covered
            module = cst.Attribute(cst.Name(self.name), cst.Name(access.path[0]))
            self.replacements[access.nodes[at - access.start]] = module

    # --- scopes

    def _owner(self, binding: Binding) -> Scope:
        """The scope in which the import binds its name."""
        scope: Scope = next(iter(self._lookup(binding.statement, binding.local))).scope
        return scope

    def _lookup(self, node: cst.CSTNode, name: str) -> Any:
        """The assignments that a name refers to at a node."""
        scope = self.scopes[node]
        assert scope is not None  # every statement and every name that is read has one
        return scope[name]

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

    def _read(self, name: cst.Name, start: Path) -> Access:
        """One use: of tfa.layers.TLU the path is ("layers", "TLU")."""
        path: list[str] = list(start)
        nodes: list[cst.BaseExpression] = [name]
        while isinstance(parent := self.parents[nodes[-1]], cst.Attribute):
            if parent.value is not nodes[-1]:
                break
            path.append(parent.attr.value)
            nodes.append(parent)
        is_none_test = False
        if len(nodes) == 1 and isinstance(parent := self.parents[name], cst.Comparison):
            others = [one.comparator for one in parent.comparisons]
            is_none_test = [getattr(one, "value", None) for one in others] == ["None"]
        return Access(tuple(path), nodes, len(start), name, is_none_test=is_none_test)

    # --- reports

    def _report(self, node: cst.CSTNode, name: str, advice: str) -> None:
        self.uses.append(Use(self.positions[node].start.line, name, advice))

    def _report_path(self, node: cst.CSTNode, path: Path) -> None:
        name, replacement = find_replacement(path)
        self._report(node, name, str(replacement))

    def _report_left(self, access: Access) -> None:
        if is_module(access.path):
            name = ".".join(("tfa", *access.path))
            advice = "the module is used as a value and cannot be followed; change it by hand"
            self._report(access.node, name, advice)
        else:
            self._report_path(access.node, access.path)


class Finder(cst.CSTVisitor):
    """Finds the imports of TensorFlow Addons, those of truenorm, and what deserves a remark."""

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.names: list[cst.Name] = []
        self.remarks: list[tuple[cst.CSTNode, str, str]] = []

    def visit_Name(self, node: cst.Name) -> None:
        self.names.append(node)

    def visit_Import(self, node: cst.Import) -> None:
        for alias in node.names:
            root, *path = alias.evaluated_name.split(".")
            if root == ADDONS:
                local = alias.evaluated_alias or root
                self.bindings.append(Binding(node, alias, local, tuple(path)))
            elif root == "tf_keras":
                self._remark_on_keras_2(node)

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        name = "" if node.relative or node.module is None else get_full_name_for_node(node.module)
        root, *path = (name or "").split(".")
        if root == "tf_keras":
            self._remark_on_keras_2(node)
        if root != ADDONS:
            return
        if isinstance(node.names, cst.ImportStar):
            advice = "import the names that are used, then run this again"
            self.remarks.append((node, f"from {name} import *", advice))
            return
        for alias in node.names:
            imported = alias.evaluated_name
            local = alias.evaluated_alias or imported
            self.bindings.append(Binding(node, alias, local, (*path, imported)))

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        text = node.raw_value
        if re.fullmatch(rf"{ADDONS}(\.\w+)*", text):
            self.remarks.append((node, repr(text), "a name in a string: change it by hand"))
        elif text == "TF_USE_LEGACY_KERAS":
            self._remark_on_keras_2(node)
        elif re.fullmatch(r"Addons>\w+", text):
            self._remark_on_registered_name(node, text)

    def _remark_on_registered_name(self, node: cst.CSTNode, text: str) -> None:
        name = text.removeprefix("Addons>")
        if any(name in classes for classes in COVERED.values()):
            return
        known = [r for path, r in REPLACEMENTS.items() if path.split(".")[-1] == name]
        self.remarks.append((node, repr(text), str(known[0] if known else NOTHING)))

    def _remark_on_keras_2(self, node: cst.CSTNode) -> None:
        advice = "truenorm's layers are layers of Keras 3 and do not work in models of Keras 2"
        self.remarks.append((node, "Keras 2", advice))


def imports_truenorm(node: cst.CSTNode) -> bool:
    """Whether a statement binds the name truenorm to the package."""
    return isinstance(node, cst.Import) and any(
        alias.evaluated_name.split(".")[0] == "truenorm" and alias.asname is None
        for alias in node.names
    )
