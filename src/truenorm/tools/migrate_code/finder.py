"""The imports of TensorFlow Addons in a module of source code, and how a use of them is noted."""

import dataclasses
import re

import libcst as cst
from libcst.helpers import get_full_name_for_node

from truenorm.tools.migrate_code.equals import NAMES
from truenorm.tools.migrate_code.names import (
    COVERED,
    NOTHING,
    REPLACEMENTS,
    covered_name,
)

ADDONS = "tensorflow_addons"
CONTRIB = "keras_contrib"
IMPORTERS = ("import_module", "__import__", "importorskip")
ACTIVATION_ARGUMENTS = ("activation", "recurrent_activation")
# keras_contrib divides by the standard deviation plus epsilon, so its numbers are near but others.
CONTRIB_AXIS = (
    "write truenorm.InstanceNormalization(axis={axis}, epsilon=1e-3); the weights are the same, "
    "the numbers near: it divided by sd + epsilon, truenorm divides by sqrt(variance + epsilon)"
)
CONTRIB_WHOLE = (
    "without an axis it took one mean of the whole sample, with one gamma and beta: write "
    "truenorm.GroupNormalization(groups=1), with those of each channel, or "
    "truenorm.InstanceNormalization(), which the papers have"
)
Path = tuple[str, ...]  # what comes after tensorflow_addons: ("layers", "TLU")


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
    is_equal: bool = False  # Keras has exactly this
    call: cst.Call | None = None  # the call of it, where that is what is done with it
    uses: "list[Access] | None" = None  # of the other name that this one is given

    @property
    def ours(self) -> bool:
        """Whether truenorm has what it stands for, and all that is found in it by another name."""
        if self.uses is None:
            return self.covered
        has = not self.path or self.path[0] in COVERED
        return has and all(one.ours for one in self.uses if not one.is_equal and not one.is_keras)

    @property
    def is_keras(self) -> bool:
        """Whether it gives the activations another name, and Keras has all that is used."""
        is_alias = self.path == ("activations",) and self.uses is not None
        return is_alias and all(one.is_equal for one in self.uses or ())

    @property
    def is_left(self) -> bool:
        """Whether it stays, since neither truenorm nor Keras has exactly this."""
        known = self.covered or self.is_equal or self.is_none_test
        return not known and self.uses is None

    @property
    def deep(self) -> bool:
        """Whether truenorm has the class one module higher: tfa.layers.tlu.TLU."""
        return covered_name(self.path) == 2 and self.start < 2

    @property
    def covered(self) -> bool:
        """Whether it is a class that truenorm covers."""
        return covered_name(self.path) is not None


class Finder(cst.CSTVisitor):
    """Finds the imports of TensorFlow Addons, those of truenorm, and what deserves a remark."""

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.names: list[cst.Name] = []
        self.stars: list[tuple[cst.ImportFrom, str, Path]] = []
        self.dynamic: list[tuple[cst.Call, cst.SimpleString, Path]] = []
        self.replacements: dict[cst.CSTNode, cst.BaseExpression] = {}
        self.contrib: set[str] = set()  # the names of keras_contrib's InstanceNormalization
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
            elif root == CONTRIB:
                advice = "does not work with Keras 3"
                self.remarks.append((node, alias.evaluated_name, advice))
                self.contrib.add("InstanceNormalization")

    def _remark_on_contrib(self, node: cst.ImportFrom, name: str) -> None:
        if isinstance(node.names, cst.ImportStar):
            self.contrib.add("InstanceNormalization")
            self.remarks.append((node, name, "does not work with Keras 3"))
            return
        for alias in node.names:
            if alias.evaluated_name == "InstanceNormalization":
                self.contrib.add(alias.evaluated_alias or alias.evaluated_name)
                advice = "import truenorm instead; what to write is said at each use"
            else:
                advice = "truenorm and Keras 3 have nothing of this name"
            self.remarks.append((alias, f"{name}.{alias.evaluated_name}", advice))

    def visit_Call(self, node: cst.Call) -> None:
        name = (get_full_name_for_node(node.func) or "").split(".")[-1]
        if name in self.contrib and not isinstance(node.func, cst.Call):
            self._remark_on_contrib_call(node)
        if not node.args:
            return
        first = node.args[0].value
        if not isinstance(first, cst.SimpleString):
            return
        if name in IMPORTERS and re.fullmatch(rf"{ADDONS}(\.\w+)*", str(first.raw_value)):
            parts = () if name == "__import__" else tuple(str(first.raw_value).split(".")[1:])
            self.dynamic.append((node, first, parts))
        elif name == "Activation":
            self._rename_activation(first)

    def visit_Arg(self, node: cst.Arg) -> None:
        if node.keyword is not None and node.keyword.value in ACTIVATION_ARGUMENTS:
            self._rename_activation(node.value)

    def _rename_activation(self, node: cst.BaseExpression) -> None:
        """Addons>mish is mish in Keras, where it is an argument and not a key to an old file."""
        if isinstance(node, cst.SimpleString):
            name = str(node.raw_value).removeprefix("Addons>")
            if name != node.raw_value and name in NAMES:
                text = node.prefix + node.quote + NAMES[name] + node.quote
                self.replacements[node] = cst.SimpleString(text)

    def _remark_on_contrib_call(self, node: cst.Call) -> None:
        axes = [one.value for one in node.args if one.keyword and one.keyword.value == "axis"]
        axes += [one.value for one in node.args[:1] if one.keyword is None]
        text = cst.Module([]).code_for_node(axes[0]) if axes else "None"
        advice = CONTRIB_WHOLE if text == "None" else CONTRIB_AXIS.format(axis=text)
        self.remarks.append((node, "keras_contrib InstanceNormalization", advice))

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        name = "" if node.relative or node.module is None else get_full_name_for_node(node.module)
        root, *path = (name or "").split(".")
        if root == "tf_keras":
            self._remark_on_keras_2(node)
        if root == CONTRIB:
            self._remark_on_contrib(node, name or "")
        if root != ADDONS:
            return
        if isinstance(node.names, cst.ImportStar):
            self.stars.append((node, name or "", tuple(path)))
            return
        for alias in node.names:
            imported = alias.evaluated_name
            local = alias.evaluated_alias or imported
            self.bindings.append(Binding(node, alias, local, (*path, imported)))

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        text = node.raw_value
        if node in self.replacements:
            return
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
