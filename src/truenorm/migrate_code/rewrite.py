"""Rewriting the source code of one file, as `analysis.py` says; comments and layout stay."""

import ast
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import libcst as cst
from libcst.helpers import get_full_name_for_node

from truenorm.migrate_code.analysis import ADDONS, Analysis, Use, imports_truenorm


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A rewritten file, in its own encoding, and the uses in it that were left to the user."""

    source: bytes
    uses: list[Use]


def rewrite(source: bytes) -> Rewritten:
    """Rewrite the source code of a file.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError, libcst.ParserSyntaxError: it is not
            source code that this Python and LibCST can read; `complaint` puts it into words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its string literals
        check(source)
        module = cst.parse_module(source)
        if module.bytes != source:
            raise SyntaxError("its line ends or its encoding would not survive rewriting")
        analysis = Analysis(module)
        if analysis.edits or analysis.replacements:
            source = analysis.module.visit(Rewriter(analysis)).bytes
    return Rewritten(source, sorted(set(analysis.uses)))


def check(source: bytes) -> None:
    """Raise where Python cannot parse this; LibCST would crash on code that is nested deeply."""
    compile(source, "source", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def complaint(error: Exception) -> str:
    """Why a file could not be rewritten."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    if isinstance(error, (RecursionError, MemoryError)):
        return "it is nested too deeply"
    if isinstance(error, cst.ParserSyntaxError):
        return f"LibCST cannot read it: {error.message.splitlines()[0]}"
    return str(error) or type(error).__name__


BLOCKS = (cst.Module, cst.IndentedBlock, cst.SimpleStatementSuite)


class Rewriter(cst.CSTTransformer):
    """Makes the changes of an analysis."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__()
        self.analysis = analysis
        # The blocks that already have `import truenorm`, so that each gets one.
        self.blocks: set[int] = set()
        self.block: list[int] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, BLOCKS):
            self.block.append(id(node))
        return super().on_visit(node)

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        if isinstance(original_node, BLOCKS):
            self.block.pop()
        new = self.analysis.replacements.get(original_node)
        if new is not None:
            return new.with_changes(lpar=updated_node.lpar, rpar=updated_node.rpar)
        return super().on_leave(original_node, updated_node)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> Any:
        new = self._statements(original_node.body, updated_node.body)
        if len(original_node.body) > 1 or len(new) == 1:
            return updated_node.with_changes(body=new)
        # A new line for each further statement, and the comments stay with the first.
        return cst.FlattenSentinel([
            updated_node.with_changes(body=new[:1]),
            *(cst.SimpleStatementLine([statement]) for statement in new[1:]),
        ])  # fmt: skip

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> Any:
        return updated_node.with_changes(
            body=self._statements(original_node.body, updated_node.body)
        )

    def _statements(
        self,
        original: Sequence[cst.BaseSmallStatement],
        updated: Sequence[cst.BaseSmallStatement],
    ) -> list[cst.BaseSmallStatement]:
        """The statements of one line, with the imports among them changed."""
        result: list[cst.BaseSmallStatement] = []
        for before, after in zip(original, updated, strict=True):
            if isinstance(before, cst.Import):
                new: Sequence[cst.BaseSmallStatement] = self._import(before)
            elif isinstance(before, cst.ImportFrom):
                new = self._import_from(before)
            else:
                new = [after]
            # Semicolons: the one that followed the statement follows the last of its successors.
            for statement in new[:-1]:
                result.append(statement.with_changes(semicolon=cst.MaybeSentinel.DEFAULT))
            result.append(new[-1].with_changes(semicolon=before.semicolon))
        return result

    def _import(self, node: cst.Import) -> list[cst.Import]:
        edits = [self.analysis.edits.get(alias) for alias in node.names]
        names = []
        for alias, edit in zip(node.names, edits, strict=True):
            path = alias.evaluated_name.split(".")[1:2]
            if edit == "swap":
                asname = alias.asname or cst.AsName(cst.Name(ADDONS))
                alias = alias.with_changes(name=_dotted(["truenorm", *path]), asname=asname)
            elif edit == "rename" and (alias.asname or self.analysis.name != "truenorm"):
                alias = self._truenorm().with_changes(comma=alias.comma)
            elif edit == "rename":
                alias = alias.with_changes(name=_dotted(["truenorm", *path]))
            names.append(alias)
        new = [node.with_changes(names=names)]
        if imports_truenorm(new[0]):
            self.blocks.add(self.block[-1])
        return [*new, *self._beside(edits)]

    def _import_from(self, node: cst.ImportFrom) -> list[cst.Import | cst.ImportFrom]:
        if isinstance(node.names, cst.ImportStar):
            return [node]
        edits = [self.analysis.edits.get(alias) for alias in node.names]
        if not any(edits):
            return [node]
        path = str(get_full_name_for_node(node.module or node)).split(".")
        stay = [a for a, edit in zip(node.names, edits, strict=True) if edit in (None, "beside")]
        swap = [a for a, edit in zip(node.names, edits, strict=True) if edit == "swap"]
        new: list[cst.Import | cst.ImportFrom] = []
        if stay:
            new.append(_part(node, stay))
        if swap:
            truenorm = _dotted(["truenorm", *path[1:2]])
            new.append(_part(node, swap).with_changes(module=truenorm))
        if "rename" in edits and not (new and self.block[-1] in self.blocks):
            self.blocks.add(self.block[-1])
            new.append(cst.Import([self._truenorm()]))
        return [*new, *self._beside(edits)]

    def _truenorm(self) -> cst.ImportAlias:
        """`truenorm`, or `truenorm as truenorm_` where that name is taken."""
        name = self.analysis.name
        asname = None if name == "truenorm" else cst.AsName(cst.Name(name))
        return cst.ImportAlias(cst.Name("truenorm"), asname)

    def _beside(self, edits: Sequence[str | None]) -> list[cst.Import]:
        """`import truenorm` where one of these changes asks for it and the block has none."""
        if "beside" not in edits or self.block[-1] in self.blocks:
            return []
        self.blocks.add(self.block[-1])
        return [cst.Import([self._truenorm()])]


def _dotted(parts: Sequence[str]) -> cst.Name | cst.Attribute:
    node: cst.Name | cst.Attribute = cst.Name(parts[0])
    for part in parts[1:]:
        node = cst.Attribute(node, cst.Name(part))
    return node


def _part(node: cst.ImportFrom, names: list[cst.ImportAlias]) -> cst.ImportFrom:
    """The import of some of its names, with the comment after each of them.

    What follows the last of them is laid out as what followed the last name before.
    """
    assert not isinstance(node.names, cst.ImportStar)  # which has no names to choose from
    *others, last = names
    comma, end = last.comma, node.names[-1].comma
    if last is node.names[-1]:
        return node.with_changes(names=names)
    white = comma.whitespace_after if isinstance(comma, cst.Comma) else None
    if (
        node.rpar is None
        or not isinstance(comma, cst.Comma)
        or not isinstance(white, cst.ParenthesizedWhitespace)
    ):
        comma = end if isinstance(end, cst.Comma) else cst.MaybeSentinel.DEFAULT
        return node.with_changes(names=[*others, last.with_changes(comma=comma)])
    closing = end.whitespace_after if isinstance(end, cst.Comma) else node.rpar.whitespace_before
    if isinstance(closing, cst.ParenthesizedWhitespace):
        white = white.with_changes(indent=closing.indent, last_line=closing.last_line)
    last = last.with_changes(comma=comma.with_changes(whitespace_after=white))
    rpar = node.rpar.with_changes(whitespace_before=cst.SimpleWhitespace(""))
    return node.with_changes(names=[*others, last], rpar=rpar)
