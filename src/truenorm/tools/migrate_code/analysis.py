"""What has to change in a module of source code, and what is left to the user.

A name that an import of TensorFlow Addons binds, such as tfa, has uses. Where truenorm covers all
of them, the import alone is changed: `import truenorm as tfa`. Where it covers some, the import
stays for the others, `import truenorm` is put beside it, and the covered uses become
`truenorm.layers.X`. An activation that Keras has exactly becomes Keras'. What cannot be followed
stays as it is and is reported.
"""

import builtins
from collections.abc import Iterator, Sequence
from typing import Any

import libcst as cst
from libcst.metadata import Assignment, ImportAssignment

from truenorm.tools.migrate_code import equals
from truenorm.tools.migrate_code.finder import Access, Binding, Finder, Path
from truenorm.tools.migrate_code.names import (
    COVERED,
    REPLACEMENTS,
    covered_name,
    find_replacement,
    is_module,
)
from truenorm.tools.migrate_code.reading import Reader
from truenorm.tools.migrate_code.uses import Use

BY_HAND = "the module is used as a value and cannot be followed; change it by hand"


class Analysis(Reader):
    """What is to be changed in a module, and what is left."""

    def __init__(self, module: cst.Module) -> None:
        finder = Finder()
        super().__init__(module, finder)
        self.uses: list[Use] = []
        self.notes: list[Use] = []
        self.replacements: dict[cst.CSTNode, cst.BaseExpression] = {}
        # What becomes of each alias that changes: "swap", `import truenorm as tfa`; "rename",
        # `import truenorm`; "beside", both that and the old one; "keras", `import keras`.
        self.edits: dict[cst.ImportAlias, str] = {}
        self.with_keras: set[cst.ImportAlias] = set()  # those with `import keras` beside them
        self.stars: dict[cst.ImportFrom, list[str]] = {}  # what takes the place of their stars
        self.additions: dict[cst.Call, cst.Arg] = {}  # an argument to put after the others
        self.name = self._free_name("truenorm")
        self.keras = self._free_name("keras")
        self.has_keras = any(
            isinstance(one, ImportAssignment) and imports(one.node, "keras")
            for one in self._scope(self.module).assignments
        )
        groups: dict[tuple[int, str], list[Binding]] = {}
        for binding in finder.bindings:
            if self._is_class(binding):
                self._treat_class(binding)
            else:
                owner = self._owner(binding)
                groups.setdefault((id(owner), binding.local), []).append(binding)
        for bindings in groups.values():
            self._treat_module(bindings)
        for call, text, path in finder.dynamic:
            self._treat_dynamic(call, text, path)
        for star, package, path in finder.stars:
            self._treat_star(star, package, path)
        self.replacements |= finder.replacements
        for node, what, advice in finder.remarks:
            if node not in self.annotations:
                self._report(node, what, advice)

    def _free_name(self, name: str) -> str:
        """The name for `import truenorm` or `import keras`: another one where that is taken."""
        taken = {
            assignment.name
            for scope in set(self.scopes.values())
            if scope is not None
            for assignment in scope.assignments
            if not (isinstance(assignment, ImportAssignment) and imports(assignment.node, name))
        }
        while name in taken:
            name += "_"
        return name

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
        accesses = self._accesses([binding])
        equal = [] if self._others([binding]) else [one for one in accesses if one.is_equal]
        for access in equal:
            self._replace_by_keras(access)
        if equal:
            self._edit([binding], "keras" if len(equal) == len(accesses) else "beside keras")
        left = [access for access in accesses if access not in equal]
        for access in left:
            self._report_path(access.node, access.path)
        if not accesses:
            self._report_path(binding.alias, binding.path)

    # --- names that are bound to a module

    def _treat_module(self, bindings: list[Binding]) -> None:
        top = self._accesses(bindings)
        accesses = list(_flat(top))
        left = [one for one in accesses if one.is_left]
        covered = [one for one in accesses if one.covered]
        equal = [one for one in accesses if one.is_equal]
        # `import tensorflow_addons.optimizers` and `from tensorflow_addons import optimizers`
        foreign = [
            one
            for one in bindings
            if one.path and not is_module(one.path) and not (equal and one.path[0] == "activations")
        ]
        deep = any(
            covered_name(one.path) == 2 or (one.uses is not None and len(one.path) > 1)
            for one in accesses
        )
        replaceable = not left and not foreign
        kept = all(binding.keeps_its_name for binding in bindings)
        if replaceable and not deep and not equal and kept:
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
            hand = covered + equal
        elif hand:
            obstacle = "left as it is, in a string: write it with truenorm"
        for access in equal:
            if access not in hand:
                self._replace_by_keras(access)
        renamed = [access for access in covered if access not in hand]
        with_keras = bool(equal) and not self.has_keras and obstacle is None
        if with_keras:
            self.with_keras |= {binding.alias for binding in bindings[:1]}
        # Where a failed import leaves None, or the name is compared with None, it must stay.
        optional = self._others(bindings) or any(access.is_none_test for access in accesses)
        if replaceable and not hand and not optional:
            self._edit(bindings, "rename" if renamed or not equal else "keras")
        elif replaceable and not deep and all(not binding.path for binding in bindings):
            self._edit(bindings, "swap")  # import truenorm as tensorflow_addons
            return
        elif renamed:
            self._edit(bindings, "beside")
        elif with_keras:
            self._edit(bindings[:1], "beside keras")
        if obstacle is None or hand != covered + equal:
            for access in top:
                self._rename(access, hand)
        for access in hand:
            self._report(access.node, ".".join(("tfa", *access.path)), str(obstacle))

    def _rename(self, access: Access, hand: list[Access]) -> None:
        """Write a use with truenorm: of another name, what that name is given, if it can be."""
        if access.uses is None:
            if access.covered and access not in hand:
                self._replace(access)
        elif access.is_keras:
            module = cst.Attribute(cst.Name(self.keras), cst.Name("activations"))
            self.replacements[access.nodes[-1]] = module
        elif access.ours:
            self.replacements[access.nodes[-1]] = self._module(access.path)
            for use in access.uses:
                if use.deep or (use.uses is not None and (len(use.path) > 1 or use.is_keras)):
                    self._rename(use, hand)
        else:
            for use in access.uses:
                self._rename(use, hand)

    def _replace_by_keras(self, access: Access) -> None:
        name = equals.activation(access.path)
        assert name is not None  # the access is equal
        whole = None if access.call is None else equals.call_of(name, access.call, self.keras)
        if access.call is not None and whole is not None:
            self.replacements[access.call] = whole
        elif access.call is not None and name == "gelu":
            function = cst.parse_expression(f"{self.keras}.activations.gelu")
            self.replacements[access.nodes[-1]] = function
            if len(access.call.args) == 1:
                self.additions[access.call] = cst.Arg(
                    cst.Name("True"),
                    keyword=cst.Name("approximate"),
                    equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
                )
        else:
            called = access.call is not None
            function, is_lambda = equals.function(name, self.keras, called)
            self.replacements[access.nodes[-1]] = function
            if is_lambda and not called:
                line = self.positions[access.node].start.line
                self.notes.append(Use(line, f"tfa.activations.{name}", equals.LAMBDA))

    # --- imports that are calls, and stars

    def _treat_dynamic(self, call: cst.Call, text: cst.SimpleString, path: Path) -> None:
        """`importlib.import_module("tensorflow_addons.layers").TLU`, and names it is given."""
        accesses = list(_flat([self._read(call, path)]))
        left = [one for one in accesses if one.is_left or one.is_equal or one.deep]
        if left or not any(one.covered for one in accesses):
            for access in left:
                if access.nodes[-1] is not call:
                    self._report_left(access)
            return
        # __import__ gives the package, and importlib the module
        parts = text.raw_value.split(".")[1:2]
        new = text.quote + ".".join(("truenorm", *parts)) + text.quote
        self.replacements[text] = cst.SimpleString(text.prefix + new)
        self.annotations.add(text)

    def _treat_star(self, star: cst.ImportFrom, name: str, path: Path) -> None:
        """A star becomes the names that are used where truenorm has all that nothing else binds."""
        unknown = {
            local
            for local, nodes in self.names.items()
            if not hasattr(builtins, local)
            and any(not self._lookup(node, local) for node in nodes if not self._is_part(node))
        }
        ours = unknown & COVERED[path[0]] if path and path[0] in COVERED else set()
        if ours and ours == unknown:
            self.stars[star] = sorted(ours)
        else:
            advice = "import the names that are used, then run this again"
            self._report(star, f"from {name} import *", advice)

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
        assert at is not None  # the access is covered
        if access.start == 0 and at == 1:
            self.replacements[access.nodes[0]] = cst.Name(self.name)
        else:
            self.replacements[access.nodes[at - access.start]] = self._module(access.path)

    def _module(self, path: Path) -> cst.Name | cst.Attribute:
        """truenorm, or the part of it that has what is at a path."""
        name = cst.Name(self.name)
        return cst.Attribute(name, cst.Name(path[0])) if path else name

    # --- reports

    def _report(self, node: cst.CSTNode, name: str, advice: str) -> None:
        self.uses.append(Use(self.positions[node].start.line, name, advice))

    def _report_path(self, node: cst.CSTNode, path: Path) -> None:
        name, replacement = find_replacement(path)
        self._report(node, name, str(replacement))

    def _report_left(self, access: Access) -> None:
        if is_module(access.path):
            name = ".".join(("tfa", *access.path))
            self._report(access.node, name, BY_HAND)
        else:
            self._report_path(access.node, access.path)


def _flat(accesses: Sequence[Access]) -> Iterator[Access]:
    """Uses, and those of the names that they are given."""
    for access in accesses:
        yield access
        yield from _flat(access.uses or ())


def imports(node: cst.CSTNode, name: str) -> bool:
    """Whether a statement binds the name of a package, truenorm or keras, to that package."""
    if isinstance(node, cst.ImportFrom) and not isinstance(node.names, cst.ImportStar):
        # from tensorflow import keras
        return name == "keras" and any(
            alias.evaluated_name == "keras" and alias.asname is None for alias in node.names
        )
    return isinstance(node, cst.Import) and any(
        alias.evaluated_name == f"tensorflow.{name}"
        if alias.evaluated_alias == name
        else alias.evaluated_name.split(".")[0] == name and alias.asname is None
        for alias in node.names
    )
