"""The documents: every command parses, every import is there, every link leads somewhere, every cell of the table has its test."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import guides
import pytest
import typer
import yaml

import sd_scissorhands
from sd_scissorhands import settings
from sd_scissorhands.attacks import ATTACKS
from sd_scissorhands.attacks.attack_settings import AttackSettings, parse_attacks
from sd_scissorhands.cli import app
from sd_scissorhands.cli.measure import ATTACK_GATES
from sd_scissorhands.cli.options import GateMissed, check_gates, parse_gates
from sd_scissorhands.declaration import choices
from sd_scissorhands.diffusion.families.base import Family
from sd_scissorhands.domains.base import Domain
from sd_scissorhands.evaluation.evaluate_settings import EvaluateSettings
from sd_scissorhands.evaluation.metrics import gates_of
from sd_scissorhands.models.tensor_files import DTYPES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sd_scissorhands"

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUP = typer.main.get_command(app)
COMMAND = re.compile(r"(?:^|[\s/(])(?:sdscissor|-m sd_scissorhands) +(.*)")
NAMED = {
    **choices(settings.EraseSettings),
    **choices(EvaluateSettings),
    "to": settings.OUTPUT_FORMATS,
    "output_format": settings.OUTPUT_FORMATS,
}
EXPORTED = {"to": settings.OUTPUT_FORMATS, "dtype": tuple(DTYPES)}
SETTINGS = {
    kind.__name__: {field.name for field in dataclasses.fields(kind)}
    for kind in (settings.EraseSettings, settings.ForgetSettings, sd_scissorhands.EvaluateSettings, AttackSettings)
}
SETTINGS["AttackSettings"] |= {name for _, one in ATTACKS for name in one.takes}


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def lines_of(document: Path) -> list[tuple[int, str]]:
    """What is typed after `sdscissor` in the blocks of a document, with its line."""
    found = []
    for block in guides.blocks_of(document.read_text()):
        text = block.text.replace("\\\n", "  ")
        for number, line in enumerate(text.splitlines(), block.line + 1):
            if block.language in ("bash", "yaml", "text", "") and (typed := COMMAND.search(line)):
                found.append((number, typed[1]))
    return found


def words_of(typed: str) -> list[str]:
    """The arguments of a line, up to what the shell takes for itself."""
    lexer = shlex.shlex(typed, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    return words


def added_by(document: Path) -> set[str]:
    """Names and flags that a guide adds to the command line by the files that it writes."""
    blocks = [
        block for block in guides.blocks_of(document.read_text()) if block.mark == "file" or block.language == "diff"
    ]
    names = {Path(block.about).stem.replace("_", "-") for block in blocks if block.mark == "file"}
    text = "\n".join(block.text for block in blocks)
    names |= set(re.findall(r'^\+ +"([\w-]+)": Recipe', text, flags=re.M)) | set(re.findall(r'\.add\("([\w-]+)"', text))
    return names | {settings.flag(name) for name in re.findall(r"^    (\w+): \w+ = setting\(", text, flags=re.M)}


def without(words: list[str], added: set[str]) -> list[str]:
    """The arguments of a line but for flags that are added or whose value is."""
    values = [following.partition("=")[0] for following in (*words[1:], "")]
    own = [n for n, word in enumerate(words) if word.startswith("--") and added & {word, values[n]}]
    return [word for n, word in enumerate(words) if n not in own and n - 1 not in own]


def parse(words: list[str]):
    """The context of a command, parsed as the command line does and not run; None of its help."""
    command = GROUP.commands[words[0]]
    if words[1:] in (["--help"], ["--help-all"]):
        return None
    context = command.make_context(words[0], words[1:])
    for name, value in context.params.items():
        allowed = EXPORTED.get(name) if words[0] == "export" else NAMED.get(name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if name == "attack" and one not in (None, "none"):
                parse_attacks(one)
            if allowed and one is not None:
                assert str(one) in allowed, f"{one} is none of {', '.join(allowed)}"
    gates = {name: context.params.get(name) for name in ("fail_above", "fail_below")}
    if any(gates.values()):
        kind = "concept" if context.params.get("concept") else "i2p"
        known = ATTACK_GATES if words[0] == "attack" else gates_of(kind)
        parse_gates(known, *gates.values())
    return context


COMMANDS = [(name_of(doc), line, typed) for doc in DOCUMENTS for line, typed in lines_of(doc)]


@pytest.mark.parametrize("document", sorted({name for name, _, _ in COMMANDS}))
def test_every_command_of_a_document_parses(document):
    added = added_by(ROOT / document)
    for name, line, typed in COMMANDS:
        if name == document:
            try:
                parse(without(words_of(typed), added))
            except Exception as error:
                raise AssertionError(f"{document}:{line}: sdscissor {typed}: {error!r} {error}") from error


def test_commands_within_sentences_are_there_with_their_flags():
    count = 0
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.S | re.M)
        for quoted in re.findall(r"`(?:sdscissor|accelerate launch -m sd_scissorhands) ([^`]+)`", text):
            name, *words = quoted.replace("\n", " ").split()
            for part in name.split("|"):
                assert part in GROUP.commands or part.startswith("--"), f"{name_of(document)}: {quoted}"
            flags = {flag for option in getattr(GROUP.commands.get(name), "params", ()) for flag in option.opts}
            used = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}
            assert used <= flags, f"{name_of(document)}: {quoted}"
            count += 1
    assert count > 5


def test_an_attack_that_proves_nothing_can_be_held_at_the_gate():
    gates = parse_gates(ATTACK_GATES, ["asr_after=.1", "broken=0"], None)
    check_gates(gates, {"asr_after": 0.0, "broken": False})
    with pytest.raises(GateMissed, match=r"^broken is 1, above 0$"):
        check_gates(gates, {"asr_after": 0.0, "broken": True})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("erase --concpt nudity", "--concpt"), ("eval --limit many", "valid int"), ("erase --recipe magic", "magic is none of"),
        ("attack --model x --concept y --attack all", "'all' is unknown"), ("attack --model x", "concept"), ("conjure", "conjure"),
        ("eval --model x --concept y --fail-above nudity=1", "no figure of this"),
    ],
)  # fmt: skip
def test_what_the_parser_must_refuse(wrong, says):
    with pytest.raises(Exception, match=says):
        parse(words_of(wrong))


def test_a_line_ends_where_the_shell_begins():
    assert words_of('eval --model "a b" --limit 3 || test $? -eq 3  # note') == [
        "eval",
        "--model",
        "a b",
        "--limit",
        "3",
    ]


PYTHON = [
    (name_of(document), block.line, block)
    for document in DOCUMENTS
    for block in guides.blocks_of(document.read_text())
    if block.language == "python"
]


def test_every_import_and_setting_of_the_documents_is_there():
    for name, line, block in PYTHON:
        for node in ast.walk(ast.parse(block.text)):
            where = f"{name}:{line}"
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("sd_scissorhands"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    found = hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
                    assert found, f"{where}: {alias.name}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in SETTINGS:
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert given <= SETTINGS[node.func.id], f"{where}: {given - SETTINGS[node.func.id]}"
    assert len(PYTHON) >= 8


def test_every_link_leads_to_a_file():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{name_of(document)} links to {target}"


def test_guides_are_listed_short_and_say_what_they_do_not_guarantee():
    index = (guides.GUIDES / "README.md").read_text()
    assert len(guides.guides()) == 12
    for guide in guides.guides():
        text = guide.read_text()
        assert f"({guide.name})" in index
        assert 40 <= len(text.splitlines()) <= 160 and "(../limits.md)" in text, guide.name
        assert "## What can go wrong" in text and "## What it does not guarantee" in text, guide.name
        for block in guides.blocks_of(text):
            assert block.language and (block.mark != "not run" or block.about), f"{guide.name}:{block.line}"
            assert block.language in guides.RUN or block.mark, f"{guide.name}:{block.line} is neither run nor marked"
            if block.language == "yaml":
                assert yaml.safe_load(block.text)["jobs"]
        for mark in re.findall(r"<!--.*", text):
            assert guides.MARK.match(mark.strip()), f"{guide.name}: {mark}"
        for other in guides.marks_of(text, "starts from"):
            assert (guides.GUIDES / other).exists()


def test_every_file_that_a_document_names_is_there():
    for document in DOCUMENTS:
        text = document.read_text()
        written = set(guides.marks_of(text, "file"))
        for name in set(re.findall(r"(?<![ab]/)\b(?!a/|b/)((?:\w+/)+\w+\.py)\b", text)) - written:
            former = document.name == "archive.md"  # whose files are those of a former commit
            assert former or (ROOT / name).exists() or (PACKAGE / name).exists(), f"{name_of(document)} names {name}"


def strings() -> set[str]:
    """Every string of the package and of the files that guides write, f-strings in their parts."""
    texts = [file.read_text() for file in PACKAGE.rglob("*.py")]
    texts += [block.text for _, _, block in PYTHON if block.mark == "file"]
    nodes = (node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return {node.value.strip() for node in nodes if isinstance(node.value, str) and len(node.value.strip()) >= 5}


def covered(message: str, known: set[str]) -> float:
    """The share of a message's characters that are of known strings; `...` in it is left out."""
    places: set[int] = set()
    for one in (text for text in known if text in message):
        places |= {n for hit in re.finditer(re.escape(one), message) for n in range(*hit.span())}
    for piece in re.finditer(r"[^.\s](?:(?!\.\.\.).)*", message):
        length = next((n for n in range(len(piece[0]), 7, -1) if any(piece[0][:n].strip() in one for one in known)), 0)
        places |= set(range(piece.start(), piece.start() + length))
    return len(places) / len(message.replace("...", ""))


def test_messages_that_the_guides_explain_are_those_of_the_package():
    known, count = strings(), 0
    for guide in guides.guides():
        section = guide.read_text().split("## What can go wrong")[1].split("\n## ")[0]
        for message in re.findall(r"^- `([^`]* [^`]*)`", section, flags=re.M):
            assert covered(message, known) >= 0.6, f"{guide.name}: no message of the package reads {message!r}"
            count += 1
    assert count > 25 and covered("--steps 3 is what nobody ever wrote: leave it alone", known) < 0.6


@pytest.mark.parametrize(("guide", "kind"), [("add-a-family", Family), ("add-a-domain", Domain)])
def test_what_a_guide_says_is_declared_is(guide, kind):
    known = {*dir(kind), *kind.__annotations__}
    cells = re.findall(r"^\| (`.+?`) \|", (guides.GUIDES / f"{guide}.md").read_text(), flags=re.M)
    names = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    assert len(names) > 8 and names <= known, names - known
    assert guide != "add-a-domain" or names == {name for name in known if not name.startswith("_")}


def test_the_guide_lists_every_attack_with_its_settings():
    rows = re.findall(
        r"^\| `([\w-]+)` \| [^|]+\|([^|]*)\|$", (guides.GUIDES / "erase-nudity.md").read_text(), flags=re.M
    )
    listed = {name: tuple(re.findall(r"--[\w-]+", cell)) for name, cell in rows}
    assert listed == {name: tuple(settings.flag(one) for one in attack.takes) for name, attack in ATTACKS}


def test_the_readme_stays_one_page():
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    paragraphs = [one for one in re.split(r"\n\s*\n|\n(?=[-|#])", plain) if not one.startswith(("|", "#"))]
    sentences = [one for text in paragraphs for one in re.split(r"(?<=[.!?:])\s+", " ".join(text.split()))]
    assert max(len(one.split()) for one in sentences) <= 25
    for extra in ("[memory]", "[notebook]", "[dev]"):
        assert extra in text
    for document in ("docs/guides/README.md", "docs/families.md", "docs/limits.md", "docs/experiments.md"):
        assert f"({document})" in text


# ---------------------------------------------------------------- the table of families

CELL = re.compile(r"^(yes|refused)(?:: (?P<why>[^`]+?))? \[`(?P<id>[^`]+)`\]\((?P<link>[^)]+)\)$")
COLUMNS = ["family", "erase", "eval", "attack", "resume", "single file", "reload equal"]
ROWS = ["SD 1", "SD 2 (epsilon)", "SD 2 (v)", "SDXL", "SD 3", "FLUX.1"]


def table() -> list[list[str]]:
    lines = [line for line in (ROOT / "docs" / "families.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_cell_of_the_families_is_backed_by_a_test_that_is_collected(pytestconfig):
    header, _, *rows = table()[:8]
    assert [cell.strip("| ") for cell in header] == COLUMNS and [row[0] for row in rows] == ROWS
    told = [CELL.match(cell) for row in rows for cell in row[1:]]
    assert all(told) and len(told) == 36
    files = {cell["link"].removeprefix("../") for cell in told}
    collected = set(ids_of([ROOT / file for file in files]))
    for cell in told:
        assert f"{cell['link'].removeprefix('../')}::{cell['id']}" in collected, cell["id"]
        assert (cell[1] == "refused") == bool(cell["why"])


def ids_of(files: list[Path]) -> list[str]:
    """What pytest collects in some files."""
    found: list[str] = []

    class Kept:
        def pytest_collection_finish(self, session):
            found.extend(item.nodeid for item in session.items)

    arguments = [
        "--collect-only",
        "-qq",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "addopts=",
        *map(str, files),
    ]
    pytest.main([f"--rootdir={ROOT}", "--no-header", "--no-summary", *arguments], plugins=[Kept()])
    return found


@pytest.mark.slow
def test_every_guide_can_be_followed(tmp_path, capsys):
    home, outcomes = guides.stand_in(tmp_path / "hf"), []
    for guide in guides.in_order(guides.guides()):
        outcomes.append(guides.followed(guide, tmp_path, home))
    with capsys.disabled():
        print(f"\n{guides.table_of(outcomes)}")
    assert not [outcome.failed for outcome in outcomes if outcome.failed]
