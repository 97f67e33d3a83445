"""Sparse deltas: every bit comes back, nothing else is taken, and nothing is believed that a file says."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.cli.apply import default_output, in_words
from sd_scissorhands.disk import write_tensors
from sd_scissorhands.errors import UserError
from sd_scissorhands.models import apply as room
from sd_scissorhands.models.apply import apply_delta
from sd_scissorhands.models.delta import (
    FORMAT,
    LEAP,
    Origin,
    changed_indices,
    decode,
    encode,
    header,
    read_delta,
    set_weights,
    write_delta,
)
from sd_scissorhands.models.load import open_pipeline
from sd_scissorhands.models.tensor_files import hash_tensors
from sd_scissorhands.results.models import AppliedDelta
from sd_scissorhands.tiny import MODEL_DIR

runner = CliRunner()
SD1 = 859_520_964  # weights of Stable Diffusion 1's UNet
FORMS = [(), (1,), (7,), (3, 5), (2, 3, 3, 3), (300, 700), (64, 1), (0,)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal names, shapes, types and bytes."""
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape
        and one[name].dtype == other[name].dtype
        and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def random_model(seed: int, forms=FORMS) -> dict[str, torch.Tensor]:
    """Tensors whose order in the dictionary is not that of their names."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(forms), generator=generator).tolist()
    return {f"part.{n}.weight": torch.randn(forms[n], generator=generator) for n in order}


def perturbed(base: dict[str, torch.Tensor], share: float, seed: int) -> dict[str, torch.Tensor]:
    """A copy in which about a share of the weights has other bits."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in base.items():
        moved = torch.rand(tensor.shape, generator=generator) < share
        changed[name] = torch.where(moved, -tensor * (1 + torch.rand(tensor.shape, generator=generator)), tensor)
    return changed


def origin(base: dict, changed: dict, **other) -> Origin:
    return Origin(
        "a model", hash_tensors(base.items()), hash_tensors(changed.items()), "a recipe", ("a", "b"), 3, **other
    )


def write(path, base, changed):
    return write_delta(path, changed, base=base, origin=origin(base, changed))


def rebuilt(base: dict[str, torch.Tensor], path) -> dict[str, torch.Tensor]:
    delta = read_delta(path)
    copy = {name: tensor.clone() for name, tensor in base.items()}
    set_weights(copy, delta.positions, delta.values)
    return copy


# ---------------------------------------------------------------- gaps


def plain_encode(positions: list[int]) -> list[int]:
    """One gap after the other, as the format is described."""
    gaps, at = [], 0
    for position in positions:
        while position - at >= LEAP:
            gaps.append(LEAP)
            at += LEAP
        gaps.append(position - at)
        at = position + 1
    return gaps


def plain_decode(gaps: list[int]) -> list[int]:
    positions, at = [], 0
    for gap in gaps:
        at += gap
        if gap != LEAP:
            positions.append(at)
            at += 1
    return positions


@pytest.mark.parametrize("seed", range(8))
def test_gaps_are_those_of_the_plain_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    reach = 10 ** torch.randint(0, 7, (400,), generator=generator)  # up to fifteen leaps in one gap
    positions = (1 + (torch.rand(400, generator=generator) * reach).long()).cumsum(0) - 1
    gaps = encode(positions)
    assert gaps.dtype == torch.int16
    assert [gap & 0xFFFF for gap in gaps.tolist()] == plain_encode(positions.tolist())
    assert torch.equal(decode(gaps), positions)


@pytest.mark.parametrize(
    "positions",
    [[], [0], [LEAP - 1], [LEAP], [LEAP + 1], [2 * LEAP], [0, LEAP], [0, LEAP + 1, LEAP + 2], [5 * LEAP + 3], [SD1 - 1],
     [0, 1, 2, 3], [32767, 65535, 98303]],
)  # fmt: skip
def test_gaps_at_the_edges(positions):
    gaps = encode(torch.tensor(positions, dtype=torch.int64))
    assert [gap & 0xFFFF for gap in gaps.tolist()] == plain_encode(positions)
    assert decode(gaps).tolist() == positions


@pytest.mark.parametrize("positions", [[-1], [3, 3], [4, 2], [0, 5, 5, 9]])
def test_positions_out_of_order_are_refused(positions):
    with pytest.raises(ValueError, match="ascend"):
        encode(torch.tensor(positions))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_gaps_are_positions_ascend(seed):
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randint(-(2**15), 2**15, (1000,), generator=generator).to(torch.int16)
    gaps[torch.rand(1000, generator=generator) < 0.3] = -1  # leaps
    found = decode(gaps)
    assert found.tolist() == plain_decode([gap & 0xFFFF for gap in gaps.tolist()])
    assert (found.diff() > 0).all() and found[0] >= 0


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_every_bit_comes_back(share, seed, tmp_path):
    base = random_model(seed)
    changed = perturbed(base, share, seed + 100)
    kept = {name: tensor.clone() for name, tensor in changed.items()}
    told = write(tmp_path / "d.safetensors", base, changed)
    assert same(changed, kept), "writing must leave the model as it was"
    assert same(rebuilt(base, tmp_path / "d.safetensors"), changed)
    count = sum(int((base[name] != changed[name]).sum()) for name in base)
    delta = read_delta(tmp_path / "d.safetensors")
    assert told.delta_weights == len(delta) == count and delta.origin == origin(base, changed)
    assert delta.size == sum(tensor.numel() for tensor in base.values())
    assert told.delta_bytes == (tmp_path / "d.safetensors").stat().st_size
    if share in (0.0, 1.0):
        assert count == (delta.size if share else 0)


def test_first_and_last_weight_and_gaps_of_many_leaps(tmp_path):
    base = {"b": torch.zeros(5 * LEAP + 7), "a": torch.ones(1), "c": torch.ones(2, 2), "d": torch.zeros(())}
    changed = {name: tensor.clone() for name, tensor in base.items()}
    changed["a"][0], changed["b"][4 * LEAP + 1], changed["b"][-1] = 2, 3, 4
    changed["d"] = torch.tensor(5.0)
    told = write(tmp_path / "d", base, changed)
    assert told.delta_weights == 4 and same(rebuilt(base, tmp_path / "d"), changed)
    assert read_delta(tmp_path / "d").positions.tolist() == [0, 4 * LEAP + 2, 5 * LEAP + 7, 5 * LEAP + 12]


def test_the_sign_of_a_zero_and_the_smallest_numbers_are_kept(tmp_path):
    base = {"w": torch.tensor([0.0, -0.0, 0.0, 1.0, 1e-45, -0.0])}
    changed = {"w": torch.tensor([-0.0, 0.0, 0.0, 1.0 + 2**-23, -1e-45, -0.0])}
    assert write(tmp_path / "d", base, changed).delta_weights == 4
    assert same(rebuilt(base, tmp_path / "d"), changed)


def test_a_delta_is_not_written_under_a_hash_that_it_would_miss(tmp_path):
    base = random_model(0)
    changed = perturbed(base, 0.1, 1)
    stale = dataclasses.replace(origin(base, changed), result_sha256=hash_tensors(base.items()))
    with pytest.raises(ValueError, match="not the result"):
        write_delta(tmp_path / "d", changed, base=base, origin=stale)
    with pytest.raises(ValueError, match="base is not the one"):
        write_delta(tmp_path / "d", changed, base=perturbed(base, 0.1, 2), origin=origin(base, changed))
    with pytest.raises(ValueError, match="other tensors"):
        write_delta(tmp_path / "d", changed, base=base | {"more": torch.zeros(1)}, origin=origin(base, changed))
    assert not list(tmp_path.iterdir())


def test_what_a_delta_cannot_hold(tmp_path):
    base = random_model(0)
    changed = perturbed(base, 0.1, 1)
    changed["part.4.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        write(tmp_path / "d", base, changed)
    half = {name: tensor.half() for name, tensor in base.items()}
    with pytest.raises(ValueError, match="float16"):
        write(tmp_path / "d", half, half)
    assert not list(tmp_path.iterdir())


def test_the_file_has_the_mode_of_the_users_umask(tmp_path):
    base = random_model(0)
    write(tmp_path / "d", base, base)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "d").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---------------------------------------------------------------- size


def scattered(count: int, generator: torch.Generator) -> torch.Tensor:
    found = torch.randint(SD1, (count + count // 50,), generator=generator).unique()
    return found[torch.randperm(found.numel(), generator=generator)[:count]].sort().values


def in_channels(count: int, generator: torch.Generator) -> torch.Tensor:
    width = 1280 * 9  # an output channel of the widest convolutions
    rows = torch.randperm(SD1 // width, generator=generator)[: count // width + 1].sort().values
    return (rows[:, None] * width + torch.arange(width)).view(-1)[:count]


def at_the_ends(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.cat([torch.arange(count - 1), torch.tensor([SD1 - 1])])


@pytest.mark.parametrize("spread", [scattered, in_channels, at_the_ends])
def test_half_a_percent_of_stable_diffusion_takes_less_than_30_mb(spread, tmp_path):
    count = int(0.005 * SD1)
    positions = spread(count, torch.Generator().manual_seed(0))
    assert positions.numel() == count == 4_297_604
    facts = Origin("CompVis/stable-diffusion-v1-4", "0" * 64, "f" * 64, "scissorhands", ("nudity",), 0)
    values = torch.randn(count)
    write_tensors(tmp_path / "d", {"gaps": encode(positions), "values": values}, header(facts, SD1, count))
    assert (tmp_path / "d").stat().st_size <= 6 * count + 2 * (SD1 // LEAP) + 4096 <= 30e6
    delta = read_delta(tmp_path / "d")
    assert torch.equal(delta.positions, positions) and torch.equal(delta.values, values) and delta.size == SD1


# ---------------------------------------------------------------- files that are not to be believed


@pytest.fixture
def made(tmp_path):
    """A whole delta of 100 weights: its path, tensors and header."""
    base = {"w": torch.zeros(200_000)}
    changed = {"w": torch.zeros(200_000)}
    changed["w"][1000:1099] = torch.arange(1, 100).float()
    changed["w"][199_000] = 7
    path = tmp_path / "d.safetensors"
    write(path, base, changed)
    return path, load_file(path), header(origin(base, changed), 200_000, 100)


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        read_delta(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_the_fixture_is_a_delta(made):
    path, tensors, says = made
    save_file(tensors, path, says)
    assert len(read_delta(path)) == 100


def test_truncated_files_are_refused(made):
    path, _, _ = made
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 400, len(whole) - 4, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "cannot be read" in refused(path)
    path.write_bytes(whole + b"more")
    assert "cannot be read" in refused(path)


def test_what_is_no_safetensors_file(tmp_path):
    assert "cannot be read" in refused(tmp_path / "none")
    assert "cannot be read" in refused(tmp_path)
    for content in (
        b"text",
        b"PK\x03\x04" * 50,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**5) + b"[" * 10**5,
    ):
        (tmp_path / "x").write_bytes(content)
        assert "cannot be read" in refused(tmp_path / "x")


def test_another_format_or_version(made):
    path, tensors, says = made
    assert "but no delta" in refused(MODEL_DIR / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(tensors, path)
    assert "but no delta" in refused(path)
    for version in (0, 2, "1", None):
        save_file(tensors, path, changed_header(says, version=version))
        assert f"version {version!r}, not 1" in refused(path) and "update" in refused(path)


def changed_header(says: dict[str, str], **change) -> dict[str, str]:
    """A header with other values; ... leaves one out."""
    told = {name: value for name, value in (json.loads(says[FORMAT]) | change).items() if value is not ...}
    return {FORMAT: json.dumps(told)}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "3"}, {"seed": True}, {"seed": 1.0}, {"size": "many"}, {"size": -1}, {"size": 99}, {"size": 1e9},
        {"weights": -100}, {"weights": None}, {"concepts": "heart"}, {"concepts": [1]}, {"concepts": {"a": 1}}, {"base": None},
        {"base_sha256": 7}, {"result_sha256": []}, {"recipe": {}},
        *[{name: ...} for name in ("version", "base", "base_sha256", "result_sha256", "recipe", "concepts", "seed", "size", "weights")],
    ],
    ids=str,
)  # fmt: skip
def test_headers_that_make_no_sense(made, change):
    path, tensors, says = made
    save_file(tensors, path, changed_header(says, **change))
    assert "header that makes no sense" in refused(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "[" * 100_000, '{"version": 1, "size": ' + "9" * 5000 + "}"]
)
def test_headers_that_are_not_even_an_object(made, text):
    path, tensors, _ = made
    save_file(tensors, path, {FORMAT: text})
    assert "header that makes no sense" in refused(path)


def test_tensors_that_do_not_fit(made):
    path, tensors, says = made
    gaps, values = tensors["gaps"], tensors["values"]
    for wrong in (
        {"gaps": gaps}, {"values": values}, {}, {**tensors, "more": values.clone()}, {"gaps": gaps.int(), "values": values},
        {"gaps": gaps, "values": values.double()}, {"gaps": gaps, "values": values.view(10, 10)},
        {"gaps": gaps, "values": values[:-1]}, {"gaps": gaps, "values": torch.zeros(())},
    ):  # fmt: skip
        save_file({name: tensor.contiguous() for name, tensor in wrong.items()}, path, says)
        assert "other tensors than its header says" in refused(path)
    save_file({"gaps": gaps, "values": values[:-1].contiguous()}, path, changed_header(says, weights=99))
    assert "indices that do not fit" in refused(path)  # one more place than values


def test_places_outside_the_model(made):
    path, tensors, says = made
    for place in (0, 50, len(tensors["gaps"]) - 1):
        gaps = tensors["gaps"].clone()
        gaps[place] = -2  # a weight 65,534 further on
        save_file({**tensors, "gaps": gaps}, path, says)
        assert "indices that do not fit" in refused(path)
    save_file(tensors, path, changed_header(says, size=199_000))
    assert "indices that do not fit" in refused(path)
    save_file(tensors, path, changed_header(says, size=199_001))
    assert len(read_delta(path)) == 100


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(made, value):
    path, tensors, says = made
    tensors["values"][17] = value
    save_file(tensors, path, says)
    assert "NaN or infinite" in refused(path)


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A delta of the embedded model: its path, the weights that it must give, and the model's own."""
    base = {name: tensor.clone() for name, tensor in open_pipeline("tiny").pipeline.unet.state_dict().items()}
    changed = perturbed(base, 0.005, 5)
    first, last = min(base), max(base)
    changed[first].view(-1)[0], changed[last].view(-1)[-1] = 0.25, -0.0
    path = tmp_path_factory.mktemp("delta") / "heart.safetensors"
    facts = Origin("tiny", hash_tensors(base.items()), hash_tensors(changed.items()), "scissorhands", ("heart",), 4)
    write_delta(path, changed, base=base, origin=facts)
    return path, changed, base


def test_apply_gives_the_model_that_plain_diffusers_loads(erased, tmp_path):
    path, changed, base = erased
    out = tmp_path / "deep" / "model"
    done = runner.invoke(app, ["apply", "tiny", str(path), "--output-dir", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["output_dir"] == str(out) and told["concepts"] == ["heart"] and told["seed"] == 4
    assert told["weights"] == sum(rows.numel() for rows in changed_indices(base, changed).values())
    assert told["weights_sha256"] == hash_tensors(changed.items()) and told["base_sha256"] == hash_tensors(base.items())
    loaded = StableDiffusionPipeline.from_pretrained(out, safety_checker=None, use_safetensors=True)
    own = StableDiffusionPipeline.from_pretrained(MODEL_DIR, safety_checker=None, torch_dtype=torch.float32)
    assert same(loaded.unet.state_dict(), changed) and not same(loaded.unet.state_dict(), base)
    assert same(loaded.vae.state_dict(), own.vae.state_dict())
    assert same(loaded.text_encoder.state_dict(), own.text_encoder.state_dict())
    assert (out / "world.json").read_bytes() == (MODEL_DIR / "world.json").read_bytes()
    assert same(load_file(out / "unet" / "diffusion_pytorch_model.safetensors"), changed)
    assert [file.name for file in out.parent.iterdir()] == ["model"]  # nothing half-done beside it
    (tmp_path / "plain").write_text("")
    modes = {file.stat().st_mode for file in out.rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}
    assert "already: name" in said("apply", str(out), str(path), "--output-dir", str(tmp_path / "again"))


def test_people_are_told_in_words(erased, tmp_path, monkeypatch, capsys):
    from sd_scissorhands import show

    path, *_ = erased
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, ["apply", "tiny", str(path), "--device", "cpu", "--quiet"])
    assert done.exit_code == 0 and done.stdout == ""
    assert (tmp_path / default_output("tiny", path) / "model_index.json").exists()
    assert str(default_output("CompVis/stable-diffusion-v1-4", path)) == "runs/stable-diffusion-v1-4-heart"
    told = AppliedDelta("o", "b", "d", "r", ("\x1b[31mheart",), 0, 1, 1000, "ba", "ab", 1)
    assert in_words(told)["erased"] == "\x1b[31mheart (r, seed 0)"  # which the terminal escapes
    assert "1 of 1,000 weights (0.100%)" in in_words(told)["changed"]
    show.lines(in_words(told))
    assert "\x1b[31mheart" not in (shown := capsys.readouterr().err) and "\\x1b[31mheart (r, seed 0)" in shown


def said(*arguments: str) -> str:
    """The one line of a command that must fail."""
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == 1 and done.stdout == "" and isinstance(done.exception, UserError), done.exception
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_another_base_is_refused_by_both_names(erased, foreign, tmp_path):
    path, *_ = erased
    other = tmp_path / "other"
    shutil.copytree(foreign, other)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] += 1
    save_file(tensors, file)
    out = tmp_path / "out"
    error = said("apply", str(other), str(path), "--output-dir", str(out))
    assert f"{path} was made from another model than {other}: from 'tiny'" in error and not out.exists()
    apply_delta(str(foreign), path, output_dir=out)  # the embedded model under another name is the same model
    assert not (out / "world.json").exists()


def test_a_delta_that_does_not_give_what_it_says(erased, tmp_path):
    path, *_ = erased
    tensors, delta = load_file(path), read_delta(path)
    says = header(delta.origin, delta.size, len(delta))
    bad, out = tmp_path / "bad.safetensors", tmp_path / "out"

    def apply() -> str:
        return said("apply", "tiny", str(bad), "--output-dir", str(out))

    values = tensors["values"].clone()
    values[3] += 1
    save_file({**tensors, "values": values}, bad, says)
    assert "does not give the weights that its header says" in apply()
    gaps = tensors["gaps"].clone()
    gaps[5] -= 1
    gaps[6] += 1
    save_file({**tensors, "gaps": gaps}, bad, says)  # one weight, one place too early
    assert "does not give the weights that its header says" in apply()
    for origin_, size in (
        (delta.origin, delta.size + 1000),
        (dataclasses.replace(delta.origin, base_sha256="0" * 64), delta.size),
    ):
        save_file(tensors, bad, header(origin_, size, len(delta)))
        assert "was made from another model than tiny" in apply()
    bad.write_bytes(path.read_bytes()[:-10])
    assert "cannot be read" in apply()
    assert not out.exists() and [file.name for file in tmp_path.iterdir()] == ["bad.safetensors"]


def test_a_place_beyond_the_model_is_not_looked_up(erased, tmp_path):
    path, *_ = erased
    delta = read_delta(path)
    positions = delta.positions.clone()
    positions[-1] = delta.size + 500
    bad = tmp_path / "bad"
    write_tensors(
        bad, {"gaps": encode(positions), "values": delta.values}, header(delta.origin, delta.size + 1000, len(delta))
    )
    assert "was made from another model" in said("apply", "tiny", str(bad), "--output-dir", str(tmp_path / "out"))


def test_nothing_that_is_there_is_touched(erased, tmp_path, monkeypatch):
    path, *_ = erased
    monkeypatch.setattr(room, "open_pipeline", lambda *a, **k: pytest.fail("refused before work"))
    full, empty, file, link = (tmp_path / name for name in ("full", "empty", "file", "link"))
    full.mkdir()
    (full / "thesis.txt").write_text("x")
    empty.mkdir()
    file.write_text("x")
    link.symlink_to(tmp_path / "nowhere")
    for taken in (full, empty, file, link):
        assert "exists already" in said("apply", "tiny", str(path), "--output-dir", str(taken))
    assert (full / "thesis.txt").read_text() == "x" and file.read_text() == "x" and link.is_symlink()


def test_a_result_that_came_meanwhile_is_kept(erased, tmp_path, monkeypatch):
    path, *_ = erased
    out = tmp_path / "out"
    genuine = room.open_pipeline

    def slow(*arguments, **more):
        out.mkdir()
        (out / "theirs").write_text("x")
        return genuine(*arguments, **more)

    monkeypatch.setattr(room, "open_pipeline", slow)
    with pytest.raises(UserError, match="exists already"):
        apply_delta("tiny", path, output_dir=out)
    assert [file.name for file in tmp_path.iterdir()] == ["out"] and (out / "theirs").read_text() == "x"


def test_bases_and_usage_that_cannot_be_used(erased, tmp_path):
    path, *_ = erased
    out = ("--output-dir", str(tmp_path / "out"))
    assert said("apply", "/no/such", str(path), *out).startswith("BASE /no/such does not exist")
    assert "warp cannot be used" in said("apply", "tiny", str(path), *out, "--device", "warp")
    assert "cannot be read" in said("apply", "tiny", str(tmp_path / "none"), *out)
    assert runner.invoke(app, ["apply", "tiny"]).exit_code == 2
    assert "sdscissor apply CompVis" in runner.invoke(app, ["apply", "--help"]).stdout.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_progress_ends_where_it_should(erased, tmp_path):
    from contextlib import contextmanager

    path, *_ = erased
    seen = []

    @contextmanager
    def bar(stage, total):
        seen.append((stage, total))
        yield seen.append

    apply_delta("tiny", path, output_dir=tmp_path / "out", progress=bar)
    assert seen == [("apply", 4), 1, 1, 1, 1]
