"""Tables on terminals of 80, 100 and 140 characters: nothing that is typed or counted is cut or broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.cli.export import _show_difference
from sd_scissorhands.recipes import DENOISERS, RECIPES
from sd_scissorhands.results.attack import AttackResult, OriginalRates
from sd_scissorhands.results.comparison import ComparisonResult, ComparisonRow, RecipeLine, Spread
from sd_scissorhands.results.demo import DemoRates, DemoResult, DemoRow
from sd_scissorhands.results.evaluation import ConceptEvaluation, Exposed, NudityCounts, NudityEvaluation
from sd_scissorhands.results.forget import ForgetResult
from sd_scissorhands.results.models import Difference, DifferenceRow
from sd_scissorhands.results.suite import SuiteResult, SuiteRow
from sd_scissorhands.terminal import FEW, NARROW, console
from sd_scissorhands.views import view

WIDTHS = (80, 100, 140)
PAGE = Path("runs/heart/report.html")
NAMES = [name for name, recipe in RECIPES.items() if set(DENOISERS) & set(recipe.fits)]
SHARES = {
    "UA": 0.9941, "UA_synonyms": 1.0, "UA_generic": 0.9765, "IRA": 0.9882, "CRA": 0.9886, "CRA_forget": 0.9722,
    "open_unchanged": 0.6234, "unlisted_unchanged": 0.8929, "asr": 0.0208, "attack_token_asr": 0.1041,
}  # fmt: skip
TENSOR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"


def evaluated() -> ConceptEvaluation:
    shares = {name: share for name, share in SHARES.items() if not name.startswith(("asr", "attack"))}
    return ConceptEvaluation(
        "canvas", figures=shares, n=dict.fromkeys(shares, 170), intervals=dict.fromkeys(shares, (0.9777, 0.9999)),
        original=dict.fromkeys(shares, 0.9906), another_seed={"open_unchanged": 0.1169}, by={"UA": "nudenet"}, report=PAGE,
    )  # fmt: skip


def counted() -> NudityEvaluation:
    found = {"FEMALE_GENITALIA_EXPOSED": 11123, "FEMALE_BREAST_EXPOSED": 22234}
    exposed = dict.fromkeys(("all", "core"), Exposed(33345, (1, 2), 44456, (1, 2)))
    before = NudityCounts(boxes=found, images_with=found, exposed=exposed)
    return NudityEvaluation(
        "i2p", boxes=found, images_with=found, exposed=exposed, baseline=before, images=4703, threshold=0.6,
        nudenet="3.4.2", report=PAGE,
    )  # fmt: skip


def under_suite() -> SuiteResult:
    names = ("learned embedding", "completed pictures", "Ring-A-Bell", "deployment")
    rows = [
        SuiteRow(
            name, name, 48, 0.1875, [0.1019, 0.3194], 0.9792, "guidance 1", "9 of 48: cannot rule out 32 %", True, False,
            False, 42.0,
        )
        for name in names
    ]  # fmt: skip
    return SuiteResult(
        suite="quick", concept="heart", attacks=rows, asr_after=0.1875, working=1.0, seconds=165.89, report=PAGE
    )


def under_attack() -> AttackResult:
    return AttackResult(
        attack="relearn", concept="heart", n=48, asr_before=0.0, asr_after=0.1875, interval_after=[0.1019, 0.3194],
        original=OriginalRates(0.9792, 0.9792), verdict="9 of 48: cannot rule out 32 %", IRA=0.9882, CRA=0.9886,
        original_IRA=0.9906, original_CRA=0.9906, steps_back={"concept": 160, "benign": None, "most": 1000}, seconds=42.06,
        report=PAGE,
    )  # fmt: skip


def compared(kind: str = "diffusion", shares: dict[str, float] = SHARES) -> ComparisonResult:
    costs = {"trimmed": 160638.0, "seconds": 85.25}
    figures = {name: Spread(value, 0.0, 1.0, 3, 510) for name, value in {**shares, **costs}.items()}
    return ComparisonResult(
        kind=kind, rows=[ComparisonRow(name, "heart", 0, {**shares}, costs, run="r") for name in NAMES],
        table=[RecipeLine("", name, runs=3, collapsed=1, figures={**figures}) for name in NAMES], folder=Path("c"), report=PAGE,
    )  # fmt: skip


def compared_classifiers() -> ComparisonResult:
    names = (
        "forget_accuracy",
        "test_forget_accuracy",
        "retain_accuracy",
        "test_accuracy",
        "mia",
        "mia_svc",
        "probe",
        "gap",
    )
    return compared("classifier", dict.fromkeys(names, 0.9765))


def demonstrated() -> DemoResult:
    rows = tuple(DemoRow(name, SHARES, 0, 85.0, 0.0208) for name in NAMES)
    rates = {"embedding": DemoRates(0.0, 1.0, "0 of 48: cannot rule out 7 %")}
    return DemoResult("heart", "runs/demo/model", str(PAGE), rows, rates)


def forgot() -> ForgetResult:
    figures = {"test_forget_accuracy": 0.9765, "retain_accuracy": 0.9967, "relearn": 160.0}
    return ForgetResult(
        run_dir="r", model_dir="r/model", recipe="salun", seed=0, forget="class 3", scope_size=1, trimmed=0,
        conflict_rate=None, mean_correction=None, steps=1, seconds=85.25, peak_bytes=None, weights_sha256="", figures=figures,
        n=dict.fromkeys(figures, 1131), intervals=dict.fromkeys(figures, (0.9777, 0.9999)), original=figures,
        retrained=figures, report=PAGE,
    )  # fmt: skip


def differs() -> Difference:
    row = DifferenceRow(TENSOR, 1638400, 163840, 0.1, 0.0123, 1.5)
    return Difference("a", "b", "tensor", False, 2, 2, 1, 0.5, 0.0123, 1.5, 0, (), (), (), 1, (row,))


RESULTS = (evaluated, counted, under_suite, under_attack, compared, compared_classifiers, demonstrated, forgot, differs)
WHOLE = {  # what has to be found in one piece at any width
    evaluated: [*list(SHARES)[:8], "nudenet", "99.4%", "99.1%", "97.8%"], counted: ["FEMALE_GENITALIA_EXPOSED", "22234", "44456"],
    under_suite: ["18.8%", "97.9%"], under_attack: ["18.8%", "31.9%", "160"], compared: [*NAMES, "98.8", "100.0"],
    compared_classifiers: [*NAMES, "97.7", "100.0"], demonstrated: [*NAMES, "98.8%", "2.1%"],
    forgot: ["test_forget_accuracy", "99.7%", "160"], differs: [TENSOR, "10.00%"],
}  # fmt: skip
WIDE = {  # and at 140
    evaluated: ["11.7%", "170"], counted: ["11123", "33345"], under_suite: ["10.2–31.9%", "48", "42"], under_attack: [],
    compared: ["97.2", "89.3", "160,638", "85.25", "510"], compared_classifiers: ["85.25"], demonstrated: ["85", "62.3%"],
    forgot: ["1131"], differs: ["0.0123", "1.5", "1,638,400"],
}  # fmt: skip


@pytest.fixture(params=WIDTHS)
def width(request, monkeypatch) -> int:
    monkeypatch.setattr(console, "width", request.param)
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def shown(result, capsys) -> list[str]:
    """The lines that a result prints."""
    _show_difference(result, 20) if isinstance(result, Difference) else view(result)
    return [line.rstrip() for line in capsys.readouterr().err.splitlines()]


def headings(lines: list[str]) -> list[list[str]]:
    """The columns of each table, by what stands above its rule; each is a block of characters with two spaces around it."""
    rules = [at for at, line in enumerate(lines) if set(line) == {"─"}]
    return [re.split(r"\s{2,}", lines[at - 1].strip()) for at in rules]


@pytest.mark.parametrize("made", RESULTS)
def test_names_and_numbers_are_whole_and_four_columns_are_enough(made, width, capsys):
    lines = shown(made(), capsys)
    assert all(len(line) <= width for line in lines), max(lines, key=len)
    assert "…" not in "".join(lines)
    words = {word.strip("(),") for line in lines for word in line.split()}
    assert {*WHOLE[made], *(WIDE[made] if width >= NARROW else ())} <= words
    for columns in headings(lines):
        assert width >= NARROW or 2 <= len(columns) <= FEW


@pytest.mark.parametrize(
    "made", (evaluated, counted, under_suite, compared, compared_classifiers, demonstrated, forgot)
)
def test_a_table_without_all_columns_names_the_page(made, width, capsys):
    text = "\n".join(shown(made(), capsys))
    assert (f"columns; {PAGE} has all" in text) == (width < NARROW)


def test_a_small_terminal_has_words_for_headings(capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 80)
    assert headings(shown(compared(), capsys)) == [["recipe", "concept gone", "siblings right", "back under attack"]]
    rows, attacks = headings(shown(demonstrated(), capsys))
    assert rows == ["concept gone", "siblings right", "back under attack"]
    assert attacks == ["attack", "back in", "original", "verdict"]
    assert headings(shown(evaluated(), capsys)) == [["figure", "original", "model", "95 %"]]


@pytest.mark.parametrize("command", ("concepts", "recipes"))
def test_lists_are_whole(command, width):
    text = CliRunner().invoke(app, [command]).stdout
    lines = [line.rstrip() for line in text.splitlines()]
    names = list(RECIPES) if command == "recipes" else ["brand-logo", "van-gogh"]
    assert all(len(line) <= width for line in lines) and all(f"\n{name} " in text for name in names)
    if command == "recipes":
        numbers = {number for one in RECIPES.values() for number in re.findall(r"\d{4}\.\d{5}", one.source)}
        assert numbers and all(number in text for number in numbers)


def test_a_name_wider_than_the_terminal_stays_in_one_piece(capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 40)
    assert any(TENSOR in line for line in shown(differs(), capsys))


def test_every_table_goes_through_one_function():
    root = Path(__file__).parents[1] / "sd_scissorhands"
    users = [path.name for path in root.rglob("*.py") if "rich.table" in path.read_text()]
    assert users == ["terminal.py"]
