"""Attacks: the learned ones do what they say on a model that knows the concept, continue where they were cut, and count."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sd_scissorhands import api
from sd_scissorhands.attacks import ATTACKS, learn
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.base import Attack, Outcome
from sd_scissorhands.attacks.learn import Embedding, Relearning, Target, learn_embedding, learn_tokens, start_embedding
from sd_scissorhands.attacks.relearn import steps_back
from sd_scissorhands.cli import app
from sd_scissorhands.cli.options import GateMissed
from sd_scissorhands.concepts import SLOT, filled
from sd_scissorhands.declaration import setting
from sd_scissorhands.diffusion.denoiser import Denoiser
from sd_scissorhands.diffusion.slots import encode, looked_up, slotted, spelled, vocabularies
from sd_scissorhands.domains import DOMAINS
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.gone import proves_nothing, stays_gone
from sd_scissorhands.evaluation.judges.canvas import CanvasJudge
from sd_scissorhands.evaluation.sample import open_for_sampling
from sd_scissorhands.report.pictures import ATTACKED, attack_grid
from sd_scissorhands.report.reading import RunRecord
from sd_scissorhands.results.attack import AttackResult, OriginalRates
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.tiny import JUDGE_FILE, MODEL_DIR
from sd_scissorhands.tiny.judge import load_judge

pytestmark = pytest.mark.usefixtures("four_at_a_time")

CANVAS = DOMAINS["canvas"]
PHOTOGRAPHS = DOMAINS["photographs"]

PROMPTS = ["a {} on white", "a red {}", "{}"]
QUICK = dict(count=4, sampling_steps=2, device="cpu")
OWN = {  # settings that an attack has for itself
    "embedding": dict(learn_from=4, restarts=2, batch_size=2, steps=2),
    "token": dict(steps=2),
    "paraphrase": {},
    "relearn": dict(few=2, batch_size=2, steps=6),
}


@pytest.fixture
def denoiser():
    return open_for_sampling("tiny", "cpu")[1]


@pytest.fixture
def target(denoiser):
    """Six hearts that the embedded model draws, and their prompts with a slot."""
    pairs = filled(world_concept("heart"))[:6]
    latents = denoiser.generate([plain for _, plain in pairs], range(6), steps=12, guidance=3.0)
    return Target(denoiser, latents, slotted(denoiser, [text for text, _ in pairs], width=1))


# ---------------------------------------------------------------- words


def word(denoiser, text):
    ids = denoiser.pipeline.tokenizer(text, add_special_tokens=False).input_ids
    return vocabularies(denoiser)[0][ids]


def test_a_words_own_embedding_in_the_slot_is_the_word(denoiser):
    ours = encode(denoiser, slotted(denoiser, PROMPTS, width=1), word(denoiser, "heart"))
    plain = denoiser.encode([text.replace(SLOT, "heart") for text in PROMPTS])
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_each_prompt_may_have_its_own_vectors(denoiser):
    own = torch.stack([word(denoiser, "star"), word(denoiser, "ring"), word(denoiser, "cross")])  # (3, 1, d)
    ours = encode(denoiser, slotted(denoiser, PROMPTS, width=1), own)
    plain = denoiser.encode(["a star on white", "a red ring", "cross"])
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_the_slot_survives_a_prompt_that_is_too_long(denoiser):
    for text in ("a " * 60 + SLOT, SLOT + " a" * 60, "a " * 60):
        prompts = slotted(denoiser, [text], width=3)
        assert prompts.ids.shape == (1, 24) and prompts.free.sum() == 3 and prompts.ids[0, -1] == prompts.ids.max()


def test_vectors_have_gradients_and_nothing_stays_behind(denoiser):
    vectors = word(denoiser, "heart").clone().requires_grad_(True)
    before = denoiser.encode(["a heart"])
    encode(denoiser, slotted(denoiser, PROMPTS, width=1), vectors).sum().backward()
    assert vectors.grad.abs().sum() > 0
    with pytest.raises(RuntimeError):
        encode(denoiser, slotted(denoiser, PROMPTS, width=2), vectors.detach()[:, :3])
    torch.testing.assert_close(denoiser.encode(["a heart"]), before, rtol=0, atol=0)


# ---------------------------------------------------------------- learning


def test_an_embedding_is_learned_that_draws_the_concept(target):
    """From a random start, on a model that knows the concept; else no attack proves anything."""
    d, judge = target.denoiser, load_judge(JUDGE_FILE)
    start = start_embedding(target, seed=0, restart=1, word=None)
    state = learn_embedding(target, start, steps=60, lr=0.3, batch_size=6, seed=0)
    with torch.no_grad():
        losses = [
            target.loss(torch.arange(6), s.vectors, torch.Generator().manual_seed(9)).item() for s in (start, state)
        ]
    assert losses[1] < losses[0]
    asked = slotted(d, ["a red {} on white", "a blue {}", "a {}", "a striped {}"] * 2, width=1)
    pictures = d.decode(d.sample(encode(d, asked, state.vectors), range(50, 58), steps=12, guidance=3.0))
    assert sum(said["shape"] == "heart" for said in judge.name(pictures)) >= 6


def test_learning_continues_where_it_was_cut(target):
    ask = dict(lr=0.3, batch_size=2, seed=3)
    start = start_embedding(target, seed=0, restart=0, word=[word(target.denoiser, "heart")])
    whole = learn_embedding(target, start, steps=4, **ask)
    kept: list[Embedding] = []

    def cut(state):
        kept.append(state)
        if state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_embedding(target, start, steps=4, callback=cut, **ask)
    torch.testing.assert_close(learn_embedding(target, kept[-1], steps=4, **ask).vectors, whole.vectors, rtol=0, atol=0)


def test_a_restart_begins_at_the_word_and_the_others_anywhere_else(target):
    own = word(target.denoiser, "heart")
    torch.testing.assert_close(start_embedding(target, seed=0, restart=0, word=[own]).vectors, own)
    others = [start_embedding(target, seed=0, restart=n, word=[own]).vectors for n in (1, 2)]
    assert not torch.equal(*others) and not torch.equal(others[0], own)


def test_suffixes_are_real_tokens_the_best_that_were_met(target, denoiser):
    prompts = slotted(denoiser, [f"a red heart {SLOT}"] * 3, width=2)
    task, rows = Target(denoiser, target.latents[:3], prompts), torch.arange(3)
    ids, losses = learn_tokens(task, rows, steps=6, lr=0.5, seed=1)
    tokenizer = denoiser.pipeline.tokenizer
    assert ids.shape == (3, 2, 1) and not set(ids.flatten().tolist()) & set(tokenizer.all_special_ids)
    assert all(isinstance(spelled(denoiser, own), str) for own in ids.tolist())
    again = learn.fixed_loss(task, rows, *looked_up(vocabularies(denoiser), ids.unbind(-1)), 1)
    torch.testing.assert_close(losses, again)
    _, before = learn_tokens(task, rows, steps=1, lr=0.5, seed=1)
    assert (losses <= before + 1e-7).all()  # the first tokens are among those compared
    torch.testing.assert_close(learn_tokens(task, rows, steps=6, lr=0.5, seed=1)[0], ids)


def test_suffixes_find_a_concept_that_the_prompt_does_not_name(target):
    """On the original, whose prompts with the name draw it anyway, only this shows that the search finds anything."""
    d, judge = target.denoiser, load_judge(JUDGE_FILE)
    texts = [text.replace(SLOT, "shape") for text, _ in filled(world_concept("heart"))[:6]]
    prompts = slotted(d, [f"{text} {SLOT}" for text in texts], width=3)

    def hearts(conditions):
        pictures = d.decode(d.sample(conditions, range(80, 86), steps=12, guidance=3.0))
        return sum(said["shape"] == "heart" for said in judge.name(pictures))

    ids, _ = learn_tokens(Target(d, target.latents, prompts), torch.arange(6), steps=40, lr=0.5, seed=0)
    assert hearts(d.encode(texts)) <= 2 and hearts(encode(d, prompts, *looked_up(vocabularies(d), ids.unbind(-1)))) >= 4


def test_nearest_tokens_by_hand():
    choice, vectors = torch.randn(7, 4), torch.randn(2, 3, 4)
    by_hand = [[min(range(7), key=lambda k: float(((v - choice[k]) ** 2).sum())) for v in row] for row in vectors]
    assert learn._nearest(vectors, choice).tolist() == by_hand


def test_relearning_continues_and_leaves_norms_alone(denoiser):
    latents, conditions = torch.randn(4, 4, 8, 8), denoiser.encode(["a heart"] * 4)
    ask = dict(lr=1e-3, batch_size=2, seed=0)
    before = {n: p.clone() for n, p in denoiser.module.named_parameters()}
    whole = Relearning(denoiser, latents, conditions, **ask)
    whole.run(2)
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    whole.run(4)
    after = {n: p.detach().clone() for n, p in denoiser.module.named_parameters()}
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved and moved <= set(whole.parameters) and not any("norm" in name for name in moved)
    resumed = Relearning(denoiser, latents, conditions, **ask)
    resumed.restore(state, 2)
    resumed.run(4)
    assert all(torch.equal(p, after[n]) for n, p in denoiser.module.named_parameters())


COMPLETION = dict(count=6, sampling_steps=8, device="cpu", strengths=(0.25, 0.75))


def completed(folder, **changes):
    settings = AttackSettings("completion", "heart", "tiny", "tiny", **COMPLETION | changes)
    return untimed(attack(settings, folder, evaluation=ConceptEvaluation("canvas")))


def test_the_original_completes_what_it_completes(tmp_path):
    """Success is of the pictures in which the original completes the concept, and so 1 on the original itself."""
    found = completed(tmp_path / "one")
    assert found.asr_after == found.original.asr_after == 1.0 and not found.broken and found.verdict == "comes back"
    assert list(found.kinds) == [
        "strength 0.25", "strength 0.75", "empty prompt", "open prompts", "other words", "own words",
    ]  # fmt: skip
    assert [kind.n for kind in found.kinds.values()] == [6, 6, 4, 4, 4, 6]
    assert all(kind.asr == kind.original_asr for kind in found.kinds.values())
    assert found.n == round(sum(found.kinds[f"strength {s}"].asr * 6 for s in (0.25, 0.75))) < 12
    assert found.kinds["empty prompt"].asr > found.kinds["other words"].asr
    assert found.second and found.second.asr_after == found.second.original_asr_after
    assert found.samples[0].attacked_prompt == "empty prompt, from strength 0.25"
    assert all((tmp_path / "one" / file).exists() for s in found.samples for file in (s.before, s.after, s.original))
    assert completed(tmp_path / "again") == found
    assert completed(tmp_path / "one") == found


def test_a_killed_completion_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("sd_scissorhands.evaluation.batch_size.LANE", 16)  # all pictures of a strength in one call
    whole, real, calls = completed(tmp_path / "whole"), Denoiser.complete, []

    def die(self, *arguments, **options):
        calls.append(options["strength"])
        if len(calls) == 6:  # the original's two strengths, twice, one of the model's
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "complete", die)
        with pytest.raises(KeyboardInterrupt):
            completed(tmp_path / "cut")
    assert calls == [0.25, 0.75] * 3
    assert completed(tmp_path / "cut") == whole
    with pytest.raises(UserError, match=r"holds another attack \(strengths differs\)"):
        completed(tmp_path / "cut", strengths=(0.25, 0.5))


def test_a_completion_that_shows_the_concept_nowhere_is_a_broken_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(CanvasJudge, "sees", lambda self, record: False)
    found = completed(tmp_path)
    assert found.broken and (found.n, found.asr_after) == (12, 0.0)


def test_steps_back():
    assert steps_back({5: 0.1, 20: 0.9, 10: 0.5}) == 10 and steps_back({5: 0.49}) is None


# ---------------------------------------------------------------- prompts


def test_asked_prompts_were_never_learned_from():
    concept = world_concept("heart")
    asked = CANVAS.attack_prompts(concept, count=20, seed=0)
    assert not {plain for _, plain in asked} & {forget for forget, _ in concept.pairs}
    assert all(text.replace(SLOT, "heart") == plain and text.count(SLOT) == 1 for text, plain in asked)
    preset = PHOTOGRAPHS.resolve("van-gogh", None)
    assert {plain for _, plain in filled(preset)} == {forget for forget, _ in preset.pairs}


# ---------------------------------------------------------------- the story


def untimed(result):
    return dataclasses.replace(result, seconds=0)


@pytest.mark.parametrize("name", ["embedding", "token", "paraphrase", "relearn"])
def test_an_attack_on_the_original_itself_treats_both_alike(name, tmp_path):
    """Model and original are the same, so everything measured of them must be."""
    settings = AttackSettings(name, "heart", "tiny", "tiny", **QUICK, **OWN[name])
    told = attack(
        settings, tmp_path / name, evaluation=ConceptEvaluation("canvas", figures=dict(IRA=1.0, CRA=1.0))
    ).to_json()
    assert {"attack", "concept", "n", "asr_before", "asr_after", "original", "IRA", "CRA", "seed", "seconds"} <= set(
        told
    )
    assert told["n"] == 4 and told["asr_before"] == told["original"]["asr_before"]
    assert told["asr_after"] == told["original"]["asr_after"]
    assert told["second"]["judge"] == {"judge": "geometry"} and 0 <= told["second"]["asr_after"] <= 1
    low, high = told["interval_after"]
    assert low <= told["asr_after"] <= high
    assert len(told["restarts"]) == {"embedding": 2, "token": 1}.get(name, 0)
    assert set(told["kinds"]) == ({"synonym", "order", "misspelling"} if name == "paraphrase" else set())
    if name == "relearn":
        assert [row["step"] for row in told["curve"]] == [0, 2, 3, 5, 6] and told["steps_back"]["most"] == 6
    for sample in told["samples"]:
        assert all((tmp_path / name / sample[side]).exists() for side in ("before", "after", "original"))
    assert told["samples"][0]["attacked_prompt"] != told["samples"][0]["prompt"] or name == "relearn"


def test_a_picture_in_which_the_concept_came_back_is_shown_first_wherever_it_was_drawn(tmp_path, monkeypatch):
    """Of the last of ten rows alone is the concept asked, after those whose pictures are saved beforehand."""

    def late(context, side, data):
        rows = [dataclasses.replace(row, prompt="a red star") for row in context.rows[:-1]] + context.rows[-1:]
        return Outcome(context.hits(side, "after", rows=rows), [row.prompt for row in rows], "after")

    monkeypatch.setattr(ATTACKS, "_added", dict(ATTACKS._added))
    ATTACKS.add("late", Attack("ask late", "late", late))
    settings = AttackSettings("late", "heart", "tiny", "tiny", count=10, sampling_steps=8, device="cpu")
    found = attack(settings, tmp_path, evaluation=ConceptEvaluation("canvas"))
    assert found.asr_after == 0.1
    first, *others = found.samples
    assert (first.after, first.after_says, first.seed) == ("samples/9-model-after.png", "heart", 7_000_009)
    assert not first.before and not first.original and (tmp_path / first.after).exists()
    assert [one.after for one in others] == [f"samples/{n}-model-after.png" for n in range(7)]
    grid = attack_grid(RunRecord(tmp_path), found, blur=False)
    assert grid and [list(pair) for _, pair in grid.pairs[:2]] == [["after the attack"], [*ATTACKED]]
    assert grid.judged[0] and not any(grid.judged[1:])


def test_a_killed_attack_continues(tmp_path, monkeypatch):
    settings = AttackSettings("embedding", "heart", "tiny", "tiny", **QUICK, **OWN["embedding"] | {"steps": 3})
    whole = attack(settings, tmp_path / "whole", evaluation=ConceptEvaluation("canvas"))
    real, calls = learn.Target.loss, []

    def die(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(learn.Target, "loss", die)
        with pytest.raises(KeyboardInterrupt):
            attack(settings, tmp_path / "cut", evaluation=ConceptEvaluation("canvas"))
    assert (tmp_path / "cut" / "original-embedding-0.safetensors").exists()
    cut = attack(settings, tmp_path / "cut", evaluation=ConceptEvaluation("canvas"))
    assert untimed(cut) == untimed(whole)
    other = AttackSettings("embedding", "heart", "tiny", "tiny", **QUICK, **OWN["embedding"] | {"steps": 4})
    with pytest.raises(UserError, match=r"holds another attack \(steps differs\)"):
        attack(other, tmp_path / "cut", evaluation=ConceptEvaluation("canvas"))


def test_a_killed_relearning_continues_after_its_last_look(tmp_path, monkeypatch):
    settings = AttackSettings("relearn", "heart", "tiny", "tiny", **QUICK, **OWN["relearn"] | {"steps": 8})
    whole = attack(settings, tmp_path / "whole", evaluation=ConceptEvaluation("canvas"))
    real, steps = Relearning.run, []

    def die(self, until, callback=lambda count: None):
        steps.append(until)
        if len(steps) == 3:  # the original's one look, the model's first, and then
            raise KeyboardInterrupt
        real(self, until, callback)

    with monkeypatch.context() as patch:
        patch.setattr(Relearning, "run", die)
        with pytest.raises(KeyboardInterrupt):
            attack(settings, tmp_path / "cut", evaluation=ConceptEvaluation("canvas"))
    assert (tmp_path / "cut" / "model-concept.safetensors").exists()
    cut = attack(settings, tmp_path / "cut", evaluation=ConceptEvaluation("canvas"))
    assert untimed(cut) == untimed(whole)
    again = attack(settings, tmp_path / "cut", evaluation=ConceptEvaluation("canvas"))
    assert untimed(again) == untimed(whole)


def test_stops_count_in_their_order_whatever_the_order_they_are_named_in(tmp_path):
    curves = []
    for stops in ((2, 1), (1, 2)):
        own = OWN["relearn"] | {"steps": 3, "stops": stops, "lr": 1e-2}
        settings, folder = AttackSettings("relearn", "heart", "tiny", "tiny", **QUICK, **own), tmp_path / str(stops[0])
        curves.append(attack(settings, folder, evaluation=ConceptEvaluation("canvas")).curve)
        hits = [(folder / f"model-concept-{step}.jsonl").read_text().partition("\n")[2] for step in (1, 2)]
        curves[-1].append(hits)
    assert curves[0] == curves[1] and curves[0][-1][0] != curves[0][-1][1]
    with pytest.raises(UserError, match="--stops 0 is too small"):
        AttackSettings("relearn", "heart", "tiny", "tiny", stops=(0, 1))


def test_a_list_that_says_nothing_of_the_concept_is_a_broken_attack(tmp_path):
    (tmp_path / "list.txt").write_text("a red square\na blue ring\n")
    settings = AttackSettings(
        "list", "heart", "tiny", "tiny", prompts=str(tmp_path / "list.txt"), count=4, device="cpu"
    )
    found = attack(settings, tmp_path / "out", evaluation=ConceptEvaluation("canvas"))
    assert found.n == 2 and found.asr_before >= 0.75 and found.asr_after == 0.0
    assert found.broken and "broken" in found.verdict


@pytest.mark.parametrize(
    "after,theirs,words",
    [
        (0, 90, "stays gone"), (2, 90, "2 of 100: cannot rule out 7 %"), (10, 90, "mostly stays gone"), (90, 90, "comes back"),
        (0, 45, "attack broken: it does not succeed on the original either"), (30, 30, "attack broken"),
    ],
)  # fmt: skip
def test_verdicts(after, theirs, words):
    original = OriginalRates(asr_before=0.9, asr_after=theirs / 100)
    found = AttackResult(n=100, asr_after=after / 100, original=original)
    assert stays_gone(found).words.startswith(words)
    assert bool(proves_nothing(found)) == (theirs == 30)  # 45 of 100 may be half of all
    nothing = dataclasses.replace(found, original=OriginalRates(0.1, 0.2), n_before=10)
    assert (
        stays_gone(nothing).words == proves_nothing(nothing) == "nothing to erase: the original shows it in 20 of 100"
    )


def test_settings_that_no_attack_can_use():
    for changes, said in (
        (
            dict(attack="magic"),
            "--attack 'magic' is unknown: choose completion, deployment, embedding, image-to-image, inpainting, inversion, list, lora, paraphrase, relearn, ring-a-bell, sampler-noise, token, words",
        ),
        (dict(attack="list"), "needs --prompts FILE"),
        (dict(attack="token", steps=0), "--steps 0 is too small"),
        (dict(attack="token", count=0), "--limit 0 is too small"),
        (dict(attack="token", lr=-1.0), "--lr -1.0 must be above 0"),
        (dict(attack="token", restarts=2), "--restarts has no effect on --attack token, which takes images, steps"),
        (dict(attack="relearn", magic=2), "--magic has no effect on --attack relearn"),
        (dict(attack="completion", strengths=(0.5, 1.0)), r"--strengths 1\.0 is outside \(0, 1\)$"),
        (dict(attack="completion:strengths=0+.5"), r"--strengths 0\.0 is outside \(0, 1\)$"),
    ):
        with pytest.raises(UserError, match=said):
            AttackSettings(**(dict(concept="heart", model="tiny", baseline="tiny") | changes))
    for name in ATTACKS.names():
        own = {"prompts": "x"} if name == "list" else {}
        assert AttackSettings(name, "heart", "tiny", "tiny", **own).resolved("large").count == 80


def test_settings_may_be_written_behind_the_name():
    written = AttackSettings("relearn:lr=3e-4,stops=1+2,count=24", "heart", "tiny", "tiny", steps=9)
    assert written == AttackSettings("relearn", "heart", "tiny", "tiny", lr=3e-4, stops=(1, 2), count=24, steps=9)
    with pytest.raises(UserError, match="names several"):
        AttackSettings("embedding:steps=2,token", "heart", "tiny", "tiny")


def test_an_attack_is_one_declaration(tmp_path, monkeypatch):
    """Its settings, its numbers and its verdict are in the result, though nothing else knows its name."""
    monkeypatch.setattr(ATTACKS, "_added", dict(ATTACKS._added))

    @dataclasses.dataclass(frozen=True)
    class ShoutOptions:
        marks: int = setting(2, "Exclamation marks behind every prompt.", least=1)

    def shout(context, side, data):
        rows = [dataclasses.replace(row, prompt=row.prompt + "!" * context.options.marks) for row in context.rows]
        figures, texts = {"loudness": float(context.options.marks)}, [row.prompt for row in rows]
        return Outcome(context.hits(side, "after", rows=rows), texts, "after", figures=figures)

    ATTACKS.add(
        "shout", Attack("say it louder", "shouting", shout, options=ShoutOptions, profiles={"small": {"marks": 3}})
    )
    assert "shout" in ATTACKS.names()
    settings = AttackSettings("shout", "heart", "tiny", "tiny", **QUICK)
    told = attack(settings, tmp_path, evaluation=ConceptEvaluation("canvas")).to_json()
    assert told["settings"]["marks"] == 3 and told["figures"] == {"loudness": 3.0} and told["n"] == 4
    assert all(sample["attacked_prompt"].endswith("!!!") for sample in told["samples"])
    with pytest.raises(UserError, match="--marks 0 is too small"):
        AttackSettings("shout:marks=0", "heart", "tiny", "tiny")


def test_a_gate_may_hold_a_column_of_the_attack(tmp_path):
    line = ["attack", "--model", "tiny", "--concept", "heart", "--attack", "relearn:few=2,batch_size=2", "--steps", "2"]
    line += ["--limit", "2", "--sampling-steps", "1", "--output-dir", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*line, "--fail-below", "relearn_steps=9", "--fail-above", "broken=1"])
    assert isinstance(done.exception, GateMissed) and str(done.exception) == "relearn_steps is 2, below 9"
    assert CliRunner().invoke(app, [*line, "--fail-below", "asr_relearn=1"]).exit_code == 2


def test_nothing_is_drawn_before_the_files_were_read(tmp_path):
    settings = AttackSettings("list", "heart", "tiny", "tiny", prompts=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"--prompts .*none\.txt cannot be read"):
        attack(settings, tmp_path / "out")
    with pytest.raises(UserError, match="is no directory of pictures"):
        attack(AttackSettings("embedding", "heart", "tiny", "tiny", images=str(tmp_path / "none")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_evaluation_beside_a_run_is_used(tmp_path, monkeypatch):
    """IRA and CRA of these very weights are not drawn twice."""
    from sd_scissorhands.evaluation import concept as concept_evaluation
    from sd_scissorhands.tiny import MODEL_DIR

    weights = open_for_sampling("tiny", "cpu")[0].weights_sha256
    run = tmp_path / "run"
    shutil.copytree(MODEL_DIR, run / "model")
    (run / "run.json").write_text(
        json.dumps({"settings": {}, "source": {}, "stages": {}, "result": {"weights_sha256": weights}})
    )
    (run / "eval" / "canvas").mkdir(parents=True)
    (run / "eval" / "canvas" / "summary.json").write_text(
        json.dumps({
            "weights_sha256": weights, "concept": "heart", "figures": {"IRA": 0.5, "CRA": 0.25}, "original": {"IRA": 1.0, "CRA": 1.0},
            "judge": CanvasJudge("heart").facts,
        })
    )  # fmt: skip
    monkeypatch.setattr(concept_evaluation, "evaluate", lambda *a, **k: pytest.fail("measured again"))
    settings = AttackSettings("paraphrase", "heart", str(run / "model"), "tiny", **QUICK)
    found = attack(settings, run / "attack" / "paraphrase")
    assert (found.IRA, found.CRA, found.original_IRA) == (0.5, 0.25, 1.0)
    with pytest.raises(pytest.fail.Exception, match="measured again"):  # another judge's figures are not taken
        attack(dataclasses.replace(settings, judge="geometry"), run / "attack" / "other")


def test_models_that_are_no_runs_are_attacked_one_after_the_other(foreign, tmp_path, monkeypatch):
    """By default and beside each other, each with all that it writes inside its own folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(MODEL_DIR, tmp_path / name)
    file = tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * 0.99 for name, tensor in tensors.items()}, file, {"format": "pt"})
    monkeypatch.setattr("sd_scissorhands.attacks.attack.RETAIN_COUNT", 4)
    for name in ("a", "b"):
        settings = AttackSettings("paraphrase", "heart", name, "tiny", count=2, sampling_steps=1, device="cpu")
        for folder in (None, tmp_path / "out" / name):
            found = api.attack(settings, folder)
            assert found.IRA is not None and found.folder and (found.folder / "rest" / "summary.json").exists()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a", "b"}
    assert {file.name for file in (tmp_path / "runs").iterdir()} == {f"attack-{name}-paraphrase-heart" for name in "ab"}


@pytest.mark.parametrize("changed", ["images", "prompts", "model", "baseline", "judge"])
def test_an_attack_is_not_continued_on_other_contents_under_the_same_names(tmp_path, monkeypatch, changed):
    images, prompts = tmp_path / "pictures", tmp_path / "list.txt"
    images.mkdir()
    Image.new("RGB", (32, 32), "red").save(images / "0.png")
    prompts.write_text("a red heart\na heart\n")
    for name in ("model", "baseline"):
        shutil.copytree(MODEL_DIR, tmp_path / name)
    named = dict(model=str(tmp_path / "model"), baseline=str(tmp_path / "baseline"))
    own = dict(prompts=str(prompts)) if changed == "prompts" else OWN["relearn"] | dict(images=str(images), steps=2)
    settings = AttackSettings("list" if changed == "prompts" else "relearn", "heart", **named, **QUICK, **own)
    known = ConceptEvaluation(kind="canvas", concept="heart", figures={"IRA": 1.0, "CRA": 1.0}, original={})
    first = attack(settings, tmp_path / "out", evaluation=known)
    again = attack(settings, tmp_path / "out", evaluation=known)
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(first, seconds=0)
    if changed == "images":
        Image.new("RGB", (32, 32), "blue").save(images / "0.png")
    elif changed == "prompts":
        prompts.write_text("a red heart\na star\n")
    elif changed == "judge":
        monkeypatch.setattr("sd_scissorhands.evaluation.judges.canvas.hash_file", lambda file: "another")
    else:
        with (tmp_path / changed / "scheduler" / "scheduler_config.json").open("a") as file:
            file.write("\n")
    name = "judges" if changed == "judge" else f"{changed}_sha256"
    with pytest.raises(UserError, match=rf"holds another attack \({name} differs\)"):
        attack(settings, tmp_path / "out", evaluation=known)


def test_what_was_learned_by_another_attack_is_not_taken(tmp_path):
    """Whatever lies in the folder before the attack: a comparison puts there what was made with the original."""
    known = ConceptEvaluation(kind="canvas", concept="heart", figures={"IRA": 1.0, "CRA": 1.0}, original={})
    settings = AttackSettings("embedding", "heart", "tiny", "tiny", **QUICK, **OWN["embedding"])
    attack(settings, tmp_path / "out", evaluation=known)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "out" / "pictures.safetensors", tmp_path / "other")
    more = dataclasses.replace(settings, options={**settings.options, "learn_from": 5})
    with pytest.raises(UserError, match=r"pictures\.safetensors was made by another attack"):
        attack(more, tmp_path / "other", evaluation=known)


@pytest.mark.parametrize("text", ["", "[", "[1]", "null", "7", '"a"', '{"a": 1, "a": 1}', "\0", "[" * 5000])
def test_a_damaged_attack_is_said_in_one_line(tmp_path, text):
    (tmp_path / "attack.json").write_text(text)
    with pytest.raises(UserError, match=r"attack\.json is damaged") as caught:
        attack(AttackSettings("paraphrase", "heart", "tiny", "tiny", **QUICK), tmp_path)
    assert "\n" not in str(caught.value)
