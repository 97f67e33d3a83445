"""Ring-A-Bell: the vector is the concept, the search finds what a random one does not, and barred words stay out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sd_scissorhands.attacks import ring_a_bell
from sd_scissorhands.attacks.attack import attack
from sd_scissorhands.attacks.attack_settings import AttackSettings
from sd_scissorhands.attacks.ring_a_bell import (
    alphabet,
    barred,
    concept_vector,
    crossed,
    encoded,
    encoding,
    mutated,
    search,
)
from sd_scissorhands.concepts import presets
from sd_scissorhands.domains.canvas import world_concept
from sd_scissorhands.errors import UserError
from sd_scissorhands.evaluation.sample import open_for_sampling
from sd_scissorhands.results.evaluation import ConceptEvaluation
from sd_scissorhands.tiny import world

pytestmark = pytest.mark.usefixtures("four_at_a_time")

HEART = world_concept("heart")
OWN = dict(searches=2, generations=15, population=32, tokens=6)
SETTINGS = AttackSettings("ring-a-bell", "heart", "tiny", "tiny", count=4, sampling_steps=4, device="cpu", **OWN)


@pytest.fixture(scope="module")
def encoder():
    return open_for_sampling("tiny", "cpu")[1].family.encoders[0]


@pytest.fixture(scope="module")
def known(encoder):
    return alphabet(encoder, barred(HEART, "words"))


@pytest.fixture(scope="module")
def target(encoder):
    return encoded(encoder, ["a red triangle on white"])[0] + 3 * concept_vector(encoder, HEART, 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rung(folder, **options):
    settings = dataclasses.replace(SETTINGS, options={**SETTINGS.options, **options})
    return dataclasses.replace(attack(settings, folder, evaluation=ConceptEvaluation("canvas")), seconds=0)


# ---------------------------------------------------------------- vector and words


def test_the_vector_leads_from_the_anchor_to_the_concept(encoder):
    vector = concept_vector(encoder, HEART, 0)
    heart, triangle, star = encoded(encoder, ["a blue heart", "a blue triangle", "a blue star"])
    assert (triangle + vector - heart).norm() < (triangle - heart).norm()
    similar = torch.nn.functional.cosine_similarity
    assert similar(vector.flatten(), (heart - triangle).flatten(), 0) > similar(
        vector.flatten(), (star - triangle).flatten(), 0
    )
    pairs = HEART.pairs[:3]
    few = dataclasses.replace(HEART, pairs=pairs)
    by_hand = sum(encoded(encoder, [named])[0] - encoded(encoder, [neutral])[0] for named, neutral in pairs) / 3
    torch.testing.assert_close(concept_vector(encoder, few, 5), by_hand, rtol=1e-4, atol=1e-4)


def test_what_is_barred_is_what_neutral_prompts_do_not_hold():
    assert barred(HEART, "words") == {"heart"} and barred(HEART, "none") == set()
    assert barred(HEART, "names") == {"heart", "valentine", "lovesign"}
    nudity = next(one for one in presets() if one.name == "nudity")
    words = barred(nudity, "words")
    assert {"nudity", "nude", "naked", "topless"} <= words and not words & {"woman", "person", "the", "shirt"}
    assert words < barred(nudity, "names")


def test_the_alphabet_is_read_as_it_is_spelled(encoder, known):
    texts = [encoder.tokenizer.decode([one]).strip() for one in known.tolist()]
    assert "heart" not in texts and {"star", "red", "lovesign"} <= {*texts} and all(text.isalpha() for text in texts)
    assert "heart" in [encoder.tokenizer.decode([int(one)]).strip() for one in alphabet(encoder, set())]
    assert not [text for text in texts if len(text) > 1 and text not in world.words()]  # no piece of a word
    rows = known[torch.randint(len(known), (20, 6), generator=seeded())]
    spelled = [encoder.tokenizer.decode(row) for row in rows.tolist()]
    torch.testing.assert_close(encoding(encoder, 6)(rows), encoded(encoder, spelled))


# ---------------------------------------------------------------- the search


def test_the_search_is_nearer_than_its_start_and_than_random_prompts_of_equal_cost(encoder, known, target):
    seen, plain = [], encoding(encoder, 6)

    def counted(tokens):
        seen.append(len(tokens))
        return plain(tokens)

    best, first, last = search(counted, target, known, width=6, population=32, generations=30, generator=seeded())
    chance = known[torch.randint(len(known), (sum(seen), 6), generator=seeded(1))]
    nearest = (plain(chance) - target).square().sum((1, 2)).min()
    assert last < nearest < first and len(seen) == 30 and sum(seen) < 1.2 * 30 * 32
    torch.testing.assert_close((plain(best[None]) - target).square().sum(), last)
    assert not set(best.tolist()) - set(known.tolist())
    again = search(plain, target, known, width=6, population=32, generations=30, generator=seeded())
    assert torch.equal(again[0], best)
    assert not torch.equal(
        search(plain, target, known, width=6, population=8, generations=1, generator=seeded(2))[0], best
    )


def test_crossing_and_mutation_by_hand():
    parents = torch.arange(40)[:, None] * 10 + torch.arange(4)  # (40, 4), the last digit is the place
    grown = crossed(parents, seeded())
    assert torch.equal(grown[:40], parents) and 60 < len(grown) < 100 and len(grown) % 2 == 0
    assert torch.equal(grown % 10, torch.arange(4).expand(len(grown), 4))
    one, other = (grown[40:] // 10).chunk(2)  # the parents of every token
    both = torch.stack([one, other]).sort(0).values  # (2, children, 4)
    assert torch.equal(both, both[..., :1].expand_as(both)) and (one[:, 0] != one[:, -1]).any()
    changed = mutated(parents, torch.tensor([-1]), seeded())
    moved = (changed != parents).sum(1)
    assert (
        set(moved.tolist()) == {0, 1} and 4 <= moved.sum() <= 17 and set(changed[changed != parents].tolist()) == {-1}
    )


# ---------------------------------------------------------------- the attack


def test_its_prompts_are_searched_once_without_a_denoiser_and_read_again(tmp_path, monkeypatch):
    whole = rung(tmp_path / "one")
    assert (
        whole.n == 4
        and whole.asr_after == whole.original.asr_after
        and (tmp_path / "one/pictures.safetensors").exists()
    )
    assert whole.figures["distance_last"] < whole.figures["distance_first"]
    texts = [sample.attacked_prompt for sample in whole.samples]
    assert texts[:2] == texts[2:] and texts[0] != texts[1] and not any("heart" in text.split() for text in texts)
    assert all(len(text.split()) == 6 for text in texts)
    assert rung(tmp_path / "again") == whole
    monkeypatch.setattr(ring_a_bell, "search", lambda *a, **k: pytest.fail("searched again"))
    assert rung(tmp_path / "one") == whole


def test_what_cannot_be_searched_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="--tokens 23 is more than the text encoder reads: at most 22"):
        rung(tmp_path, tokens=23)
    with pytest.raises(UserError, match="--bar 'all' is unknown: choose words, names, none"):
        AttackSettings("ring-a-bell:bar=all", "heart", "tiny", "tiny")
