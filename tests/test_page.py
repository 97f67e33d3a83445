"""What the page shows and does: pairs, the filter, links, plots in the page's colours; and the picture to share."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import FIGURES, ORIGINAL, add_canvas, make_run, pictures, read
from test_report_pages import RELEARN, add_attack, full_run
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.errors import UserError
from sd_scissorhands.report import card_text, share, write_card, write_picture
from sd_scissorhands.report import page as page_module
from sd_scissorhands.report.reading import read_run
from sd_scissorhands.settings import EraseSettings


def test_cards_count_what_shows_it_and_what_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    figures = {"UA": 1.0, "IRA": 0.98, "CRA": 0.99, "open_unchanged": 0.91}
    before = {"UA": 0.0, "IRA": 0.995, "CRA": 0.99, "open_unchanged": 1.0}
    add_canvas(run, figures=figures, original=before, n=dict.fromkeys(figures, 1000))
    add_attack(run, "embedding", 0.0, n=96)
    cards = re.findall(r'<p class="word">(.*?)</p>', read(run))
    assert [re.sub("<[^>]*>", "", card) for card in cards] == [
        "Gone: 0 of 1,000 show it", "Whole or nearly whole: cannot tell at n = 1,000; 98.0% kept (was 99.5%)",
        "Whole: 91.0% unchanged", "Stays gone: 0 of 96 under attack",
    ]  # fmt: skip
    card = write_card(run).read_text()
    assert "**Gone**: 0 of 1,000 show it" in card and "**Whole**: −9.0 points of open unchanged" in card


def test_the_filter_knows_where_it_came_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = read(run)
    assert "It came back in none of the 3 pairs of pictures" in page and 'id="back"' not in page
    add_attack(run, "embedding", 0.154)  # in each of its pictures
    page = read(run)
    assert "Only pictures where it came back: 3 of the 6 pairs" in page
    assert page.count('<figure class="pair back">') == 3 and page.count('<figure class="pair">') == 3


def test_of_several_attacks_only_the_first_pictures_stand_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "ROW", slice(1))
    monkeypatch.setattr(page_module, "BEHIND", slice(1, None))
    run = make_run(tmp_path / "run")
    add_attack(run, "embedding", 0.154)
    assert 'class="more"' not in read(run)
    add_attack(run, "relearn", 0.97, **RELEARN)
    page = read(run)
    assert page.count('<details class="more"><summary>2 more, 2 where it came back</summary>') == 2
    assert page.count('<figure class="pair back">') == 6


def test_attacks_stand_worst_first_and_of_many_the_rest_is_folded_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rates = {"embedding": 0.02, "token": 0.31, "paraphrase": 0.1, "words": 0.0}
    for name, rate in rates.items():
        add_attack(run, name, rate)
    headings = r'<section>(<details class="more attack"><summary>)?<h3>([^<]*): [^<]*</h3>'
    found = re.findall(headings, read(run))
    assert [bool(fold) for fold, _ in found[-4:]] == [False] * 4 and "more attack" not in read(run)
    add_attack(run, "completion", 0.2)
    found = re.findall(headings, read(run))[-5:]
    assert [bool(fold) for fold, _ in found] == [False] * 3 + [True] * 2
    assert [title for _, title in found] == [
        "Learned token", "Completed pictures", "Paraphrases", "Learned embedding", "Other words",
    ]  # fmt: skip
    page = read(run)
    assert page.count("<details") == page.count("</details>") and page.count("<summary>") == page.count("</summary>")


def test_attacks_of_a_suite_that_are_of_one_kind_have_short_names(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = make_run(tmp_path / "run")
    add_attack(run, "embedding", 0.02)
    attacks = run / "attack"
    for name in ("embedding", "embedding-tokens-3", "embedding-budget-published-restarts-1", "token"):
        shutil.copytree(attacks / "embedding", attacks / "suite-full" / name)
    shutil.rmtree(attacks / "embedding")
    record = read_run(run)
    assert [record.label(one) for one in record.attacks.values()] == [
        "learned embedding", "learned embedding, budget published restarts 1", "learned embedding, tokens 3",
        "learned embedding, token",
    ]  # fmt: skip
    read(run)
    assert not recwarn.list
    shutil.copytree(attacks / "suite-full" / "embedding", attacks / "embedding")
    record = read_run(run)
    assert {record.label(one) for one in record.attacks.values()} >= {
        "learned embedding, embedding", "learned embedding, suite-full/embedding", "learned embedding, tokens 3",
    }  # fmt: skip


def test_every_link_leads_to_a_section_that_is_there(tmp_path: Path) -> None:
    for page in (read(full_run(tmp_path / "full")), read(make_run(tmp_path / "bare", evaluated=False, history=False))):
        ids, links = re.findall(r' id="([^"]*)"', page), re.findall(r' href="#([^"]*)"', page)
        assert links and set(links) <= set(ids) and len(ids) == len(set(ids))
        assert all(f'href="#{found}"' in page for found in re.findall(r'<h2 id="([^"]*)"', page))
    assert "attacks" not in ids and "repair" in ids and "pictures" not in ids  # of the bare one


def test_a_term_says_what_it_means_where_it_stands(tmp_path: Path) -> None:
    page = read(full_run(tmp_path / "run"))
    at, meaning = re.findall(r'href="#(term-\d+)"><abbr title="([^"]*)">IRA</abbr>', page)[0]
    assert meaning.startswith("in-domain retain accuracy")
    assert f'<dt id="{at}">IRA</dt><dd>{meaning}</dd>' in page


def test_plots_have_the_pages_colours_and_bars(tmp_path: Path) -> None:
    page = read(full_run(tmp_path / "run"))
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search("#(000000|ffffff|0072b2|d55e00|009e73)", drawn) and "var(--orange)" in drawn
    settings = EraseSettings(concepts=("heart",), model="tiny", edit="none").resolved("small")
    run = make_run(tmp_path / "curve", evaluated=False, history=False, settings=settings)
    add_attack(run, "relearn", 0.97, **RELEARN)
    bars = read(run).count("stroke-width: 1.2")
    add_attack(run, "relearn", 0.97, **RELEARN | {"n": None})
    assert bars == 2 * len(RELEARN["curve"]) and read(run).count("stroke-width: 1.2") == 0


@pytest.mark.parametrize("explicit", [True, False])
def test_a_picture_to_share_has_four_pairs_blurred_where_explicit(tmp_path: Path, explicit: bool) -> None:
    run = make_run(tmp_path / "run", explicit=explicit)
    samples = [
        {"kind": kind, "prompt": "", "seed": n} | pictures(run / "eval/canvas", n, 96)
        for n, kind in enumerate(["forget", "generic"] * 3)
    ]
    add_canvas(run, samples=samples)
    drawn = np.asarray(Image.open(write_picture(run, tmp_path / "card.png")).convert("L")).astype(float)
    assert drawn.shape == (630, 1200)
    squares = [drawn[y + 20 : y + 130, x + 4 : x + 110] for y in (160, 311) for x in range(640, 1160, 131)]
    assert [square.std() < 20 for square in squares] == [explicit] * 8
    assert np.array_equal(drawn, np.asarray(Image.open(write_picture(run, tmp_path / "2.png")).convert("L")))


def test_report_writes_the_picture_and_opens_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, opened, card = make_run(tmp_path / "run"), [], tmp_path / "card.png"
    monkeypatch.setattr("webbrowser.open", lambda page: opened.append(page) or False)
    done = CliRunner().invoke(app, ["report", str(run), "--card", str(card), "--open", "--json"])
    assert done.exit_code == 0 and card.exists() and opened == [(run / "report.html").resolve().as_uri()]
    for words, said in (
        (["--card", str(card)], "exists"), (["--card", "x.jpg"], "FILE.png"), (["--open", "--format", "i2p-csv"], "--open"),
    ):  # fmt: skip
        done = CliRunner().invoke(app, ["report", str(run), *words])
        assert done.exit_code == 2 or isinstance(done.exception, UserError), words
        assert said in str(done.exception) + done.output


def test_a_card_names_no_folder_and_what_was_not_tried(tmp_path: Path) -> None:
    base = tmp_path / "models" / "mine"
    base.mkdir(parents=True)
    run = make_run(tmp_path / "run", settings=EraseSettings(concepts=("heart",), model=str(base)))
    add_canvas(run, judge={"judge": "canvas", "weights": str(base)}, figures=FIGURES, original=ORIGINAL)
    card = write_card(run).read_text()
    assert str(tmp_path) not in card and "mine" in card
    assert "No attack was run on this model; not run: " in card and "was not measured" in card
    add_attack(run, "embedding", 0.0)
    add_attack(run, "relearn", 0.97, **RELEARN)
    card = write_card(run).read_text()
    limits = card[card.index("## Limits") :]
    assert "those that were run; not run: " in limits and "learned embedding" not in limits
    assert "on pictures of the concept it is back after 40 steps" in limits


def test_the_card_of_an_add_on_claims_nothing_that_was_not_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    how = dict(repo="me/x", file="x.safetensors", to="lycoris")
    card = card_text(run, **how)
    assert (
        "An add-on that makes of its base a Stable Diffusion pipeline" in card
        and "The erased model's UNet, sha256" in card
    )
    assert "Neither it nor the whole erased model was measured." in card and "Not evaluated yet" in card
    write_picture(run, tmp_path / "bare.png")
    bare = [one.word for _, one in share._findings(read_run(run))]
    assert bare == ["Not evaluated yet", "Not attacked yet"]
    add_canvas(run, figures=FIGURES, original=ORIGINAL)
    assert "The figures on this card are of the whole erased model, not of this add-on." in card_text(run, **how)
    assert "This model's UNet" in card_text(run) and "add-on" not in card_text(run)
