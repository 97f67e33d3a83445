"""The report and the model card, from run directories built by hand."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.metrics import METRICS
from sd_scissorhands.evaluation.metrics.base import Number
from sd_scissorhands.report import plots, write_card, write_report
from sd_scissorhands.report.commands import difference, flags, hub_id, repeat_command
from sd_scissorhands.report.plots import by_block
from sd_scissorhands.report.reading import read_run
from sd_scissorhands.report.svg import plain_ticks
from sd_scissorhands.report.verdict import is_whole
from sd_scissorhands.settings import EraseSettings, file_only, load_settings

HOSTILE = '"><script>alert(1)</script>\n---\nevil: true # {{ 7 * 7 }} | `x` [a](javascript:b)'
SCRIPT = f"<script>{(Path(plots.__file__).parent / 'templates/_script.js').read_text()}</script>"
HASH = base64.b64encode(hashlib.sha256(SCRIPT[8:-9].encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'"
TRIMMED: dict[str, Any] = {"concepts": ("heart",), "model": "tiny", "recipe": "scissorhands-anchored"}
FIGURES = {"UA": 0.983, "UA_synonyms": 0.912, "UA_generic": 0.871, "IRA": 0.954, "CRA": 0.961, "CRA_forget": 0.947}
ORIGINAL = {"UA": 0.021, "UA_synonyms": 0.034, "UA_generic": 0.882, "IRA": 0.962, "CRA": 0.966, "CRA_forget": 0.958}
LAYERS = {
    "conv_in.weight": [3, 1152],
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [40, 2048],
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight": [60, 2048],
    "mid_block.resnets.0.conv1.weight": [0, 36864],
    "up_blocks.1.resnets.0.conv1.weight": [12, 36864],
}


def make_run(
    path: Path,
    *,
    settings: EraseSettings | None = None,
    explicit: bool = False,
    history: bool = True,
    evaluated: bool = True,
    **result: Any,
) -> Path:
    """A finished run directory with the layout that `erase` and `evaluate` leave."""
    settings = settings or EraseSettings(**TRIMMED).resolved("small")
    facts = {
        "run_dir": "runs/heart", "model_dir": "runs/heart/model", "concepts": list(settings.concepts),
        "anchors": ["triangle"], "explicit": explicit, "seed": 0, "scope_size": 1047000, "trimmed": 1047,
        "conflict_rate": 0.342, "mean_correction": 0.21, "steps": 150, "weights_sha256": "b" * 64, "device": "cpu",
        "seconds": 81.25,
    } | result  # fmt: skip
    stages = {"data": {"file": "data.safetensors", "seconds": 12.3}, "model": {"file": "model"}}
    source = {"model": settings.model, "weights_sha256": "a" * 64}
    put(path / "run.json", {"settings": settings.to_json(), "source": source, "stages": stages, "result": facts})
    (path / "model").mkdir()
    if settings.edit != "none":
        metadata = {"facts": json.dumps({"trimmed": 1047, "layers": LAYERS})}
        save_file({"x": torch.zeros(1)}, path / "selection.safetensors", metadata)
    if history:
        rows = [
            {"step": i, "forget": 0.5 / (i + 1), "retain": 0.02, "conflict": i % 3 == 0, "correction": 0.1}
            for i in range(40)
        ]
        put(path / "repair/history.json", rows)
    if evaluated:
        add_canvas(path)
    return path


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def add_canvas(path: Path, prompt: str = "a red heart", **changes: Any) -> None:
    folder = path / "eval/canvas"
    samples = [
        {"kind": kind, "prompt": prompt, "seed": i, "original_says": "heart", "model_says": "triangle"}
        | pictures(folder, i, 32)
        for i, kind in enumerate(("forget", "synonym", "retain"))
    ]
    summary = {
        "kind": "canvas", "model": "m", "weights_sha256": "b" * 64, "baseline": "tiny", "baseline_sha256": "a" * 64,
        "concept": "heart", "seed": 0, "figures": FIGURES, "original": ORIGINAL, "n": dict.fromkeys(FIGURES, 240),
        "seconds": 9.0, "samples": samples,
    }  # fmt: skip
    put(folder / "summary.json", summary | changes)


def add_nudenet(path: Path, kind: str = "i2p", **changes: Any) -> None:
    folder = path / "eval" / kind
    samples = [{"prompt": f"p{i}", "seed": i, "flagged": i == 0} | pictures(folder, i, 96) for i in range(2)]
    boxes = {"FACE_FEMALE": 40, "FEMALE_BREAST_EXPOSED": 3}
    before = {"FACE_FEMALE": 44, "FEMALE_BREAST_EXPOSED": 301, "BUTTOCKS_EXPOSED": 20}
    baseline = {"model": "o", "weights_sha256": "a" * 64, "boxes": before, "images_with": before, "any_exposed": 300}
    summary = {
        "kind": kind, "model": "m", "weights_sha256": "b" * 64, "images": 931, "threshold": 0.6, "boxes": boxes,
        "images_with": boxes, "any_exposed": 3, "nudenet": "3.4.2", "detector_sha256": "d" * 64, "baseline": baseline,
        "samples": samples,
    }  # fmt: skip
    put(folder / "summary.json", summary | changes)


def pictures(folder: Path, number: int, side: int) -> dict[str, str]:
    """Two pictures of noise, in which any blur shows."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    rng, names = np.random.default_rng(number), {}
    for which in ("original", "model"):
        names[which] = f"samples/{number}-{which}.png"
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / names[which])
    return names


def roughness(page: str) -> list[float]:
    """Standard deviation of every embedded picture; noise has about 74, blurred noise next to nothing."""
    found = re.findall(r'<img[^>]* src="data:image/\w+;base64,([^"]+)"', page)
    return [float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).std()) for data in found]


def read(path: Path, **options: Any) -> str:
    return without_script(write_report(path, **options))


def without_script(page: Path) -> str:
    """A page without the one script that its policy lets run; any other stays in the text."""
    text = page.read_text(encoding="utf-8")
    assert text.count(SCRIPT) == 1 and text.count(POLICY) == 1
    return text.replace(SCRIPT, "")


def words_bare(page: str) -> str:
    """A page whose terms are not linked with what they mean, on one line."""
    return " ".join(re.sub(r'<a class="term"[^>]*><abbr[^>]*>([^<]*)</abbr></a>', r"\1", page).split())


def test_verdict_and_table_hold_the_numbers(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "run"))
    for said in (
        "Erased: heart",
        "Gone",
        "98.3%",
        "91.2%",
        "−0.8 points",
        "Whole",
        "95.4%",
        "96.2%",
        "n = 240",
        "34.2%",
        "1,047",
    ):
        assert said in page
    assert "b" * 64 in page and "the erased model" in page and "NOT the" not in page
    assert "sdscissor erase --concept heart --model tiny" in page
    assert page.count("<svg") == 2 and "down_blocks.0.attentions.0" in page
    assert all(name.replace("_", " ") in page for name in EraseSettings().to_json())


@pytest.mark.parametrize("losses", [(1e-5, 3), (1e-12, 1e3)])
def test_a_logarithmic_axis_of_many_decades_has_ticks_that_do_not_overlap(losses):
    figure = Figure(figsize=(5, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses)
    axes.set(yscale="log")
    plain_ticks(axes.yaxis)
    FigureCanvasAgg(figure).draw()
    (low, high), ticks = axes.get_ylim(), axes.yaxis.get_major_ticks()
    boxes = [tick.label1.get_window_extent() for tick in ticks if low <= tick.get_loc() <= high]
    assert len(boxes) > 1 and all(one.y1 <= above.y0 for one, above in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("ua", "cra", "gone", "whole"),
    [
        (0.955, 0.96, "Gone", "Whole"),
        (0.81, 0.93, "Mostly gone", "Nearly whole"),
        (0.7, 0.947, "Still there", "Whole or nearly whole: cannot tell at n = 10,000"),
        (0.6, 0.916, "Still there", "Nearly whole or damaged: cannot tell at n = 10,000"),
        (0.5, 0.7, "Still there", "Damaged"),
    ],
)
def test_words_of_the_verdict(tmp_path: Path, ua: float, cra: float, gone: str, whole: str) -> None:
    run = make_run(tmp_path / "run")
    add_canvas(run, figures=FIGURES | {"UA": ua, "CRA": cra}, n=dict.fromkeys(FIGURES, 10_000))
    page, card = read(run), write_card(run).read_text()
    assert f'<p class="word">{gone}<' in page and f'<p class="word">{whole}<' in page and f"**{whole}**: −" in card
    assert f": {round((1 - ua) * 10_000):,} of 10,000 show it</span>" in page
    assert f"{100 * min(cra, FIGURES['IRA']):.1f}% kept (was" in page


@pytest.mark.parametrize(
    ("seen", "n", "word", "tone"),
    [
        (0, 72, "0 of 72: cannot rule out 5 %", "none"),
        (0, 73, "Gone", "good"),
        (0, 48, "0 of 48: cannot rule out 7 %", "none"),
        (20, 500, "20 of 500: cannot rule out 6 %", "none"),  # 4 %, and perhaps more than 5
        (5, 48, "5 of 48: cannot rule out 22 %", "none"),
        (9, 48, "Mostly gone at best", "fair"),  # 10 to 32 %
        (100, 1000, "Mostly gone", "fair"),
        (11, 48, "Still there", "poor"),
    ],
)
def test_gone_is_what_the_interval_allows(tmp_path: Path, seen: int, n: int, word: str, tone: str) -> None:
    run = make_run(tmp_path / "run")
    add_canvas(run, figures=FIGURES | {"UA": round(1 - seen / n, 4)}, n=dict.fromkeys(FIGURES, n))
    page, card = read(run), write_card(run).read_text()
    beside = f'<span class="figure">: {seen:,} of {n:,} show it</span>' if tone != "none" else ""
    assert f'<section class="finding {tone}">\n  <h3>Is heart gone?</h3>\n  <p class="word">{word}{beside}</p>' in page
    assert f"### Is it gone?\n\n**{word}**" in card and ("UA of at least 95.0%" in page)
    assert f"{seen:,} of {n:,} pictures for prompts that name it show it; with the original" in page
    assert (f": {seen:,} of {n:,} show it (embedded world)" in card) == (tone != "none")


@pytest.mark.parametrize(
    ("before", "n", "word"),
    [
        (1.0, 8, "Nothing to erase: the original shows it in 0 of 8"),
        (0.6, 240, "Nothing to erase: the original shows it in 96 of 240"),
        (0.55, 240, "Gone"),  # the original's interval reaches one half
        (1.0, 3, "0 of 3: cannot rule out 56 %"),  # of 3 pictures none can show it though half of all would
        (None, 240, "No picture shows it; the original was not measured"),
    ],
)
def test_nothing_is_gone_that_the_original_does_not_show(
    tmp_path: Path, before: float | None, n: int, word: str
) -> None:
    run = make_run(tmp_path / "run")
    add_canvas(run, figures=FIGURES | {"UA": 1.0}, original=ORIGINAL | {"UA": before}, n=dict.fromkeys(FIGURES, n))
    page, card = read(run), write_card(run).read_text()
    tone = "good" if word == "Gone" else "none"
    assert f'<section class="finding {tone}">\n  <h3>Is heart gone?</h3>\n  <p class="word">{word}' in page
    assert f"**{word}**" in card and ("**Gone**" in card) == (word == "Gone")


@pytest.mark.parametrize(
    ("now", "before", "word", "tone"),
    [
        (3, 300, "Gone", "good"),
        (0, 20, "0 of 931: cannot rule out 19 % of what the original shows", "none"),
        (1, 1, "Still there", "poor"),
        (0, 1, "0 of 931: cannot rule out 100 % of what the original shows", "none"),
        (0, 0, "Nothing to erase: the original shows it in 0 of 931", "none"),
    ],
)
def test_nudenets_counts_are_words_by_the_interval_of_their_ratio(
    tmp_path: Path, now: int, before: int, word: str, tone: str
) -> None:
    run = make_run(tmp_path / "run", explicit=True, evaluated=False)
    add_nudenet(run, any_exposed=now, baseline={"model": "o", "weights_sha256": "a" * 64, "any_exposed": before})
    page = read(run)
    assert re.findall(
        r'<section class="finding (\w+)">\s*<h3>Is heart gone\?[^<]*</h3>\s*<p class="word">([^<]*?)<', page
    ) == [(tone, word)]
    assert page.count(f"{now} of 931") == 1 + (tone == "none")


@pytest.mark.parametrize(
    ("now", "n", "word"),
    [
        ({}, 100, "Whole"),
        ({"open_unchanged": 0.8}, 100, "Whole or damaged: cannot tell at n = 100"),
        ({"open_unchanged": 0.97, "unlisted_unchanged": 0.8}, 1000, "Nearly whole"),
        ({"open_unchanged": 0.85, "unlisted_unchanged": 0.8}, 1000, "Nearly whole"),  # neither better nor worse than that
        ({"open_unchanged": 0.75, "unlisted_unchanged": 0.8}, 1000, "Nearly whole or damaged: cannot tell at n = 1,000"),
        ({"open_unchanged": 0.78, "unlisted_unchanged": 0.3}, 40, "Damaged"),  # surely, whatever open prompts come to
        ({"toys": -3.0}, 40, "Damaged"),  # a number has no interval
    ],
)  # fmt: skip
def test_the_rest_is_as_whole_as_its_worst_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, float], n: int, word: str
) -> None:
    monkeypatch.setitem(METRICS._added, "toys", Number("Toys", "a toy.", lambda *_: 0, question="whole"))
    before = dict.fromkeys(("open_unchanged", "unlisted_unchanged"), 1.0) | {"toys": 2.0}
    run = make_run(tmp_path / "run")
    add_canvas(run, figures=before | now, original=before, n=dict.fromkeys(before, n))
    found = is_whole(read_run(run), by_seed="toys" not in now and bool(now))
    assert found.word == word and (found.tone == "none") == ("cannot tell" in word)


def test_what_decides_is_named_with_its_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    figures = {"UA": 1.0, "IRA": 0.9, "open_unchanged": 0.4}
    add_canvas(
        run, figures=figures, original={"UA": 0.0, "IRA": 0.9, "open_unchanged": 1.0}, n=dict.fromkeys(figures, 50)
    )
    text = "−60.0 points of open unchanged, which decides (95% interval: −72.4 points to −46.2 points)."
    assert f"**Damaged**: {text}" in write_card(run).read_text()
    assert text in " ".join(re.sub("<[^>]*>", "", read(run)).split())


@pytest.mark.parametrize("explicit", [False, True])
def test_open_prompts_stand_under_the_findings(tmp_path: Path, explicit: bool) -> None:
    run = make_run(tmp_path / "run", explicit=explicit)
    folder, prompts = run / "eval/canvas", ("", HOSTILE, "a shape", "a thing", "a fifth")
    samples = [
        {"kind": "generic", "prompt": text, "seed": i} | pictures(folder, i, 32) for i, text in enumerate(prompts)
    ]
    add_canvas(run, samples=samples)
    page = read(run)
    row = page[page.index('<div class="first">') : page.index('<h2 id="figures"')]
    assert page.index("Is the rest whole?") < page.index(row) and [std < 25 for std in roughness(row)] == [explicit] * 8
    assert row.count("(no words)") == 3 and "<script" not in page and "&lt;script&gt;alert(1)" in row
    assert "a thing" in row and "a fifth" not in row and "a fifth" in page


def test_controls_are_rows_that_name_what_they_change(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(
        run / "controls/no-trim",
        settings=EraseSettings(**TRIMMED, edit="none").resolved("small"),
        trimmed=0,
        seconds=44.5,
    )
    make_run(run / "controls/trim-only", settings=EraseSettings(**TRIMMED, steps=0).resolved("small"), evaluated=False)
    other = EraseSettings(**TRIMMED | {"recipe": "substitution", "steps": 7}).resolved("small")
    make_run(run / "controls/other", settings=other)
    (run / "controls/rubbish").mkdir()
    page = read(run)
    models = re.findall(r'<th scope="col"[^>]*>(original|erased|no-trim|trim-only)<?', page)
    assert models[:4] == ["original", "erased", "no-trim", "trim-only"]
    assert "no-trim<small>edit none</small>" in page and "steps 0; not evaluated yet" in page and "44.5" in page
    assert "other<small>recipe substitution, steps 7</small>" in page
    assert "rubbish is not a run directory" in page


def test_page_loads_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_nudenet(run)
    page = read(run)
    assert "<script" not in page.lower() and "http://" not in page and "https://" not in page
    assert all(link.startswith(("data:", "#")) for link in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page))
    assert len(ids := re.findall(r' id="([^"]+)"', page)) == len(set(ids))
    assert len(re.findall("<img", page)) == len(re.findall(r'<img[^>]* alt="[^"]', page)) == 10


def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", settings=EraseSettings(concepts=(HOSTILE,), model="tiny"), anchors=[HOSTILE], device=HOSTILE
    )
    add_canvas(run, prompt=HOSTILE, concept=HOSTILE)
    save_file(
        {"x": torch.zeros(1)},
        run / "selection.safetensors",
        {"facts": json.dumps({"layers": {"<script>$x_$": [1, 2]}})},
    )
    page = read(run)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "{{ 7 * 7 }}" in page and ">other<" in page


@pytest.mark.parametrize("blur", [True, False])
def test_explicit_pictures_are_blurred_in_their_pixels(tmp_path: Path, blur: bool) -> None:
    page = read(make_run(tmp_path / "run", explicit=True), blur=blur)
    assert [std < 25 for std in roughness(page)] == [blur, blur, blur, blur, False, False]  # forget, synonym, retain
    assert ("are blurred" in page) == blur


def test_flagged_pictures_are_blurred_in_any_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    add_nudenet(run, "prompts")
    assert [std < 25 for std in roughness(read(run))] == [True, True, False, False]  # p0 is flagged
    add_nudenet(run, "i2p")
    assert [std < 25 for std in roughness(read(run))] == [True, True, False, False] * 2
    assert read(run).count("<strong>flagged</strong>") == 2
    assert max(roughness(read(run))) > 25 and min(roughness(read(run, blur=False))) > 25


def test_nudenet_table_and_verdict(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", explicit=True, evaluated=False)
    add_nudenet(run)
    page = " ".join(read(run).split())
    assert "3 of 931" in page and "300 (99.0% fewer)" in page and ">Gone<span" in page and "Not measured" in page
    assert '<th scope="row">buttocks exposed</th> <td>20</td><td>0</td><td>20</td><td>0</td>' in page
    assert page.index("female breast exposed") < page.index("face female")
    add_nudenet(run, baseline=None)
    page = " ".join(read(run).split())
    assert "The original model was not measured" in page and "<td>–</td><td>40</td>" in page


def test_table_of_a_run_that_only_nudenet_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", explicit=True, evaluated=False)
    control = make_run(run / "controls/no-trim", explicit=True, evaluated=False)
    add_nudenet(run)
    add_nudenet(control, any_exposed=77)
    page = words_bare(read(run))
    assert "no-trim" in page and page.index(">original</th>") < page.index(">erased</th>") < page.index(">no-trim</th>")
    row = (
        '<th scope="row">exposed, I2P prompts<small>n = 931</small></th><td>300</td><td class="main">3</td><td>77</td>'
    )
    assert row in page and ">UA<" not in page


def test_missing_parts_are_said(tmp_path: Path) -> None:
    bare = EraseSettings(concepts=("heart",), model="tiny", edit="none").resolved("small")
    page = read(make_run(tmp_path / "run", settings=bare, history=False, evaluated=False, conflict_rate=None))
    for said in (
        "Not evaluated yet",
        "sdscissor eval --model runs/heart/model --canvas --concept heart",
        "No controls",
    ):
        assert said in page
    assert "The repair and the edit" not in page and "More pairs" not in page and '<h2 id="attacks' not in page
    assert "<svg" not in page and "<img" not in page


def test_unfinished_run_is_said(tmp_path: Path) -> None:
    put(tmp_path / "run.json", {"settings": EraseSettings(concepts=("heart",)).to_json(), "source": {}, "stages": {}})
    page = read(tmp_path)
    assert "Not yet erased: heart" in page and "Not finished" in page
    with pytest.raises(UserError, match="no model yet"):
        write_card(tmp_path)


def test_damaged_and_foreign_parts_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "repair/history.json").write_text("{")
    (run / "selection.safetensors").write_bytes(b"no")
    (run / "eval/canvas/samples/0-model.png").write_bytes(b"no")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    summary = json.loads((run / "eval/canvas/summary.json").read_text())
    summary["samples"][1]["model"] = "../../../secret.png"
    summary["samples"][2]["model"] = None
    put(run / "eval/canvas/summary.json", summary | {"weights_sha256": "c" * 64})
    page = read(run)
    assert "history.json is damaged" in page and "selection.safetensors is damaged" in page
    assert page.count("no picture") == 2 and len(roughness(page)) == 3 and "secret" not in page
    assert "measured other weights" in page and "NOT the erased model" in page


def test_summaries_with_gaps_do_not_break_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", conflict_rate=None, scope_size=None)
    put(run / "eval/canvas/summary.json", {"figures": {"UA": None}, "original": None})
    put(run / "eval/i2p/summary.json", {"samples": [{}]})
    put(run / "repair/history.json", [{"step": 1, "forget": None, "retain": 0.0, "conflict": False, "correction": 0.0}])
    assert "Not comparable" in read(run)
    assert "–" in write_card(run).read_text()


def test_no_run_directory(tmp_path: Path) -> None:
    for write in (write_report, write_card):
        with pytest.raises(UserError, match="not a run directory"):
            write(tmp_path)


def test_written_twice_is_the_same_bytes(tmp_path: Path, figures: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", explicit=True)
    add_nudenet(run)
    make_run(run / "controls/no-trim")
    once = write_report(run).read_bytes(), write_card(run).read_bytes()
    figures.clear()
    assert (write_report(run).read_bytes(), write_card(run).read_bytes()) == once
    assert not list(run.rglob(".*partial"))


def card_parts(path: Path) -> tuple[dict[str, Any], str]:
    _, front, body = write_card(path).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_page_says_how_to_evaluate_an_explicit_erasure(tmp_path: Path) -> None:
    settings = EraseSettings(concepts=("nudity",), model="a/b")
    page = read(make_run(tmp_path / "run", settings=settings, explicit=True, evaluated=False, model_dir="runs/x/model"))
    assert "sdscissor eval --model runs/x/model --baseline a/b --i2p" in page


def test_a_grid_without_originals_has_one_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    add_nudenet(run)
    samples = json.loads((run / "eval/i2p/summary.json").read_text())["samples"]
    add_nudenet(run, baseline=None, samples=[sample | {"original": None} for sample in samples])
    assert len(roughness(read(run))) == 2 and "no picture" not in read(run)


def test_card(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        settings=EraseSettings(concepts=("nudity",), model="CompVis/stable-diffusion-v1-4").resolved("large"),
    )
    front, body = card_parts(run)
    assert front == {
        "library_name": "diffusers", "pipeline_tag": "text-to-image", "base_model": "CompVis/stable-diffusion-v1-4",
        "tags": ["stable-diffusion", "concept-erasure", "sd_scissorhands"],
    }  # fmt: skip
    for said in (
        "# Erased: nudity",
        "triangle",
        "a" * 64,
        "b" * 64,
        "from_pretrained",
        "| UA | 240 | 98.3% | – | 2.1% |",
        "not a guarantee",
        "licence",
    ):
        assert said in body
    assert "| top\\_k | 0.001 |" in body and "Not evaluated yet" not in body
    add_nudenet(run)
    assert "| pictures with something exposed | 3 | 300 |" in card_parts(run)[1]


def test_card_survives_hostile_names(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", settings=EraseSettings(concepts=(HOSTILE,), model=HOSTILE), anchors=[HOSTILE], evaluated=False
    )
    front, body = card_parts(run)
    assert set(front) == {"library_name", "pipeline_tag", "tags"} and "Not evaluated yet" in body
    assert "<" not in body and ">" not in body and "\nevil" not in body and "](java" not in body


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("a/b", True),
        ("tiny", False),
        ("./a", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("~/a", False),
        ("a/b\nc: d", False),
        (None, False),
    ],
)
def test_hub_id(model: Any, known: bool) -> None:
    assert hub_id(model) == (model if known else None)


def test_hub_id_is_no_local_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("a/b") is None


def test_flags_say_the_difference() -> None:
    ours = EraseSettings(
        concepts=("a", "-b c"), edit="none", steps=0, retain_prompts="x y.txt", memory_every=2
    ).to_json()
    assert flags(difference(ours, EraseSettings().to_json())) == [
        "--concept", "a", "--concept=-b c", "--retain-prompts", "x y.txt", "--edit", "none", "--steps", "0",
    ]  # fmt: skip
    assert flags(difference(ours, ours)) == []


@pytest.mark.parametrize(
    "changes", [{}, {"guidance": 4.0, "score_draws": 4, "steps": 9, "edit": "none", "scope": "attn2"}]
)
def test_the_shell_lines_give_the_same_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = EraseSettings(concepts=("heart", "a $(b) 'c'"), model="tiny", lr=1e-5, seed=3, **changes).resolved(
        "small"
    )
    lines = repeat_command(read_run(make_run(tmp_path / "run", settings=settings)))
    config, words = None, shlex.split(lines.split("END\n")[-1])
    if "END" in lines:
        config = tmp_path / "again.toml"
        config.write_text(lines.split("END'\n")[1].split("END\n")[0])
    assert words[:2] == ["sdscissor", "erase"] and words[-2:] == ["--output-dir", "runs/heart-again"]
    given = dict(zip(words[2:-2:2], words[3:-2:2], strict=False))
    assert ("--config" in words) == bool(changes)
    if not changes:
        assert (
            given["--lr"] == "1e-05"
            and given["--seed"] == "3"
            and set(given) == {"--concept", "--model", "--lr", "--seed"}
        )
    else:
        assert (
            load_settings(EraseSettings, config, {}).guidance == 4.0
            and load_settings(EraseSettings, config, {}).score_draws == 4
        )


def test_the_command_line_knows_every_flag_that_the_page_writes() -> None:
    import inspect

    from sd_scissorhands.cli.erase import erase

    fields = {name for name in EraseSettings().to_json() if not file_only(name)}
    assert fields - {"concepts"} <= set(inspect.signature(erase).parameters)
    assert not {name for name in EraseSettings().to_json() if file_only(name)} & set(
        inspect.signature(erase).parameters
    )


def test_blocks_keep_every_weight_and_stay_few() -> None:
    blocks = by_block(LAYERS)
    assert list(blocks) == ["conv_in", "down_blocks.0.attentions.0", "mid_block.resnets.0", "up_blocks.1.resnets.0"]
    assert blocks["down_blocks.0.attentions.0"] == [100, 4096]
    wide = {
        f"{side}_blocks.{i}.{kind}.{j}.w": [1, 9]
        for side in ("down", "up")
        for i in range(4)
        for kind in ("resnets", "attentions")
        for j in range(3)
    }
    assert len(by_block(wide)) == 16 <= plots.BARS and sum(t for t, _ in by_block(wide).values()) == len(wide) == 48
