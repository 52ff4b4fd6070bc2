"""Rewriting the source code of one file, as `analysis.py` says; comments and layout stay."""

import ast
import warnings
from collections.abc import Sequence
from typing import Any

import libcst as cst
from libcst.helpers import get_full_name_for_node

from truenorm.tools.migrate_code import keras3
from truenorm.tools.migrate_code.analysis import Analysis, imports
from truenorm.tools.migrate_code.finder import ADDONS
from truenorm.tools.migrate_code.uses import Rewritten


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
        found = keras3.find(source)
        if analysis.edits or analysis.replacements or analysis.stars:
            source = analysis.module.visit(Rewriter(analysis)).bytes
    return Rewritten(source, sorted({*analysis.uses, *found}), tuple(sorted(set(analysis.notes))))


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


STAY = (None, "beside", "beside keras")  # the edits that leave the old import where it is
BLOCKS = (cst.Module, cst.IndentedBlock, cst.SimpleStatementSuite)


class Rewriter(cst.CSTTransformer):
    """Makes the changes of an analysis."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__()
        self.analysis = analysis
        # The blocks that already have `import truenorm` or `import keras`, so that each gets one.
        self.blocks: set[tuple[int, str]] = set()
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
            lpar, rpar = updated_node.lpar, updated_node.rpar
            return new.with_changes(lpar=lpar or new.lpar, rpar=rpar or new.rpar)
        if (more := self.analysis.additions.get(original_node)) is not None:
            *others, last = updated_node.args
            comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
            end = last.comma  # a comma that closes the list goes on closing it
            updated_node = updated_node.with_changes(
                args=[*others, last.with_changes(comma=comma), more.with_changes(comma=end)]
            )
        return super().on_leave(original_node, updated_node)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> Any:
        new = self._statements(original_node.body, updated_node.body)
        if not new:  # the block has `import keras` already
            comments = [line.comment for line in updated_node.leading_lines]
            if not any([*comments, updated_node.trailing_whitespace.comment]):
                return cst.RemoveFromParent()
            new = [cst.Import([self._package("keras")])]
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
            result += [statement.with_changes(semicolon=before.semicolon) for statement in new[-1:]]
        return result

    def _import(self, node: cst.Import) -> list[cst.Import]:
        edits = [self.analysis.edits.get(alias) for alias in node.names]
        if edits == ["keras"] and (self.block[-1], "keras") in self.blocks:
            return []
        names = []
        for alias, edit in zip(node.names, edits, strict=True):
            path = alias.evaluated_name.split(".")[1:2]
            if edit == "swap":
                asname = alias.asname or cst.AsName(cst.Name(ADDONS))
                alias = alias.with_changes(name=_dotted(["truenorm", *path]), asname=asname)
            elif edit == "rename" and (alias.asname or self.analysis.name != "truenorm"):
                alias = self._package("truenorm").with_changes(comma=alias.comma)
            elif edit == "rename":
                alias = alias.with_changes(name=_dotted(["truenorm", *path]))
            elif edit == "keras":
                alias = self._package("keras").with_changes(comma=alias.comma)
            names.append(alias)
        new = [node.with_changes(names=names)]
        for package, edit in (("truenorm", "rename"), ("keras", "keras")):
            if edit in edits or imports(new[0], package):
                self.blocks.add((self.block[-1], package))
        return [*new, *self._beside(node.names)]

    def _import_from(self, node: cst.ImportFrom) -> list[cst.Import | cst.ImportFrom]:
        if isinstance(node.names, cst.ImportStar):
            if (used := self.analysis.stars.get(node)) is None:
                return [node]
            part = str(get_full_name_for_node(node.module or node)).split(".")[1]
            names = [cst.ImportAlias(cst.Name(name)) for name in used]
            return [node.with_changes(module=_dotted(["truenorm", part]), names=names)]
        edits = [self.analysis.edits.get(alias) for alias in node.names]
        if not any(edits):
            return [node]
        path = str(get_full_name_for_node(node.module or node)).split(".")
        stay = [a for a, edit in zip(node.names, edits, strict=True) if edit in STAY]
        swap = [a for a, edit in zip(node.names, edits, strict=True) if edit == "swap"]
        new: list[cst.Import | cst.ImportFrom] = []
        if stay:
            new.append(_part(node, stay))
        if swap:
            truenorm = _dotted(["truenorm", *path[1:2]])
            new.append(_part(node, swap).with_changes(module=truenorm))
        for package, edit in (("truenorm", "rename"), ("keras", "keras")):
            there = (self.block[-1], package) in self.blocks
            if edit in edits and not (there and (new or package == "keras")):
                self.blocks.add((self.block[-1], package))
                new.append(cst.Import([self._package(package)]))
        return [*new, *self._beside(node.names)]

    def _package(self, package: str) -> cst.ImportAlias:
        """`truenorm`, or `truenorm as truenorm_` where that name is taken; and so for Keras."""
        name = self.analysis.name if package == "truenorm" else self.analysis.keras
        asname = None if name == package else cst.AsName(cst.Name(name))
        return cst.ImportAlias(cst.Name(package), asname)

    def _beside(self, aliases: Sequence[cst.ImportAlias]) -> list[cst.Import]:
        """`import truenorm` and `import keras` where asked for and the block has none."""
        edits = [self.analysis.edits.get(alias) for alias in aliases]
        with_keras = "beside keras" in edits or any(
            alias in self.analysis.with_keras for alias in aliases
        )
        new = []
        for package, wanted in (("truenorm", "beside" in edits), ("keras", with_keras)):
            if wanted and (self.block[-1], package) not in self.blocks:
                self.blocks.add((self.block[-1], package))
                new.append(cst.Import([self._package(package)]))
        return new


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
