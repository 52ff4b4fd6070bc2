"""Taking tensorflow-addons out of lists of requirements and out of `pip install`.

Nothing is put in its place: truenorm is installed from a clone, whose path nobody else knows. Only
what is plain is taken out: a line of its own, a string in a list, a name after `pip install`.
"""

import fnmatch
import re

from truenorm.tools.migrate_code.uses import Rewritten, Use

FILES = (
    "*requirements*.txt",
    "*requirements*.in",
    "setup.cfg",
    "pyproject.toml",
    "environment*.yml",
    "environment*.yaml",
    "Pipfile",
    "Dockerfile*",
    "*.dockerfile",
)
MENTION = re.compile(r"(?i)\b(?:tensorflow[-_]addons|keras[-_]contrib)\b(?!-)")
# The name as a distribution: in Python code tensorflow_addons is a module.
NAME = r"(?i:tensorflow[-_]addons)(?:\[[\w, -]*\])?"
VERSION = r"(?: *\(?[=<>!~^]=?=? *[\w.*+!]+(?: *, *[=<>!~^]=?=? *[\w.*+!]+)*\)?)?"
MARKER = r"(?: *;[^#\r\n]*)?"
REQUIREMENT = NAME + VERSION + MARKER
QUOTED = rf"(?:\"{NAME}{VERSION}(?: *;[^\"\n]*)?\"|'{NAME}{VERSION}(?: *;[^'\n]*)?')"
# A line of its own, in requirements.txt, setup.cfg, environment.yml, a list of strings, Pipfile.
LINE = re.compile(
    rf"^(?P<indent>[ \t]*)(?P<item>- +)?(?:{REQUIREMENT}|{QUOTED},?|"
    rf"[\"']?{NAME}[\"']?\s*=\s*(?:\"[^\"]*\"|'[^']*'|\{{[^}}]*\}}))"
    r"[ \t]*(?P<comment>#[^\r\n]*)?(?P<end>\r?\n|\Z)",
    re.M,
)
IN_LIST = re.compile(rf"{QUOTED}\s*,[ \t]*|,\s*{QUOTED}(?=\s*[\])])|(?<=\[){QUOTED}(?=\])")
# A whole command on one or more lines: the words that follow are the packages and the options.
PIP = re.compile(
    r"^(?P<before>[ \t]*(?:[!%][ \t]*|RUN[ \t]+)?(?:(?:\S*python[\d.]*|\{sys\.executable\})[ \t]+"
    r"-m[ \t]+)?pip[\d.]*[ \t]+install\b)(?P<words>(?:\\\r?\n|[^\r\n])*)(?P<end>\r?\n|\Z)",
    re.M,
)
WORD = re.compile(
    rf"(?:[ \t]|\\\r?\n)+(?P<quote>[\"']?){NAME}(?:[=<>!~][\w.*+!,<>=~]+)?(?P=quote)(?=\s|\\|$)"
)
OPTIONS = re.compile(r"(?:\s|\\|--?[\w-]+(?:=\S*)?)*")  # none of them names a package
ADVICE = {
    "tensorflow-addons": "take it out by hand; truenorm is installed from a clone",
    "keras-contrib": "not needed where none of its layers is left",
}


def is_list(name: str) -> bool:
    """Whether a file of this name lists requirements."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in FILES)


def count(source: bytes) -> int:
    """How often a file names the distribution."""
    return len(re.findall(rb"(?i)\btensorflow-addons\b(?!-)", source))


def rewrite(source: bytes) -> Rewritten:
    """Take tensorflow-addons out of a list of requirements."""
    text = source.decode("utf-8", "surrogateescape")
    new = without_commands(without_lines(text))
    return Rewritten(new.encode("utf-8", "surrogateescape"), uses(new))


def uses(text: str) -> list[Use]:
    """The lines that still name the distributions, but for comments."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        for match in MENTION.finditer(re.sub(r"(?:^|\s)#.*", "", line)):
            name = match[0].lower().replace("_", "-")
            found.append(Use(number, name, ADVICE[name]))
    return found


def uses_in_commands(text: str) -> list[Use]:
    """Those in the lines of a notebook's cell that are commands."""
    lines = text.split("\n")
    return [use for use in uses(text) if re.match(r"\s*[!%]", lines[use.line - 1])]


def without_lines(text: str) -> str:
    """The text without the requirement, be it a line of its own or a string in a list."""

    def line(match: re.Match[str]) -> str:
        if match["item"] and not _has_neighbour(text, match):
            return match[0]
        if match["comment"]:
            return f"{match['indent']}{match['comment']}{match['end']}"
        return ""

    return IN_LIST.sub("", LINE.sub(line, text))


def _has_neighbour(text: str, match: re.Match[str]) -> bool:
    """Whether a list in YAML has another item beside this one: an empty one is an error."""
    item = match["indent"] + "- "
    before = text[: match.start()].rstrip("\r\n").rpartition("\n")[2]
    return (before.startswith(item) and not before.endswith(":")) or text.startswith(
        item, match.end()
    )


def without_commands(text: str) -> str:
    """The text without the package in `pip install`, or without the command if it was all."""

    def command(match: re.Match[str]) -> str:
        words = WORD.sub("", match["words"])
        if words == match["words"] or re.search(r"&&|\|\||;", words):  # more than one command
            return match[0]
        if OPTIONS.fullmatch(words):
            return ""
        return match["before"] + words + match["end"]

    return PIP.sub(command, text)
