"""Differences between checkpoints in any layout, and run directories held against what they say of themselves."""

from __future__ import annotations

import dataclasses
import json
import shutil
import xml.etree.ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import UNET_FILE, build
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.erasure import erase
from sd_scissorhands.models.diff import difference, group_of, measure, network_order
from sd_scissorhands.models.export import export
from sd_scissorhands.models.verify import verify
from sd_scissorhands.settings import UserError
from sd_scissorhands.tiny import MODEL_DIR

runner = CliRunner()
MOVED = ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "conv_out.bias")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return two(tmp_path_factory.mktemp("pair"), gelu=False)


def two(folder, gelu):
    """Two pipelines that differ in two tensors of the UNet, and one in the text encoder."""
    build(folder / "a", levels=2, layers=1, gelu=gelu)
    shutil.copytree(folder / "a", folder / "b")
    file = folder / "b" / UNET_FILE
    tensors = load_file(file)
    for name in MOVED:
        tensors[name].view(-1)[:3] += 0.25
    save_file(tensors, file, {"format": "pt"})
    file = folder / "b/text_encoder/model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.k_proj.bias"))
    tensors[name][4] -= 1
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, short):
    """A finished run of seconds in which single weights were trained, with a delta."""
    folder = tmp_path_factory.mktemp("runs") / "heart"
    erase(dataclasses.replace(short, recipe="scissorhands", train="selection"), folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "heart")
    return tmp_path / "heart"


# ---------------------------------------------------------------- difference


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_plain_formulas(seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(5, 7, generator=generator)
    b = torch.where(torch.rand(5, 7, generator=generator) < 0.3, a + torch.randn(5, 7, generator=generator), a)
    flat = list(zip(a.double().view(-1).tolist(), b.double().view(-1).tolist(), strict=True))
    told = measure(a, b).row("w")
    assert told.size == 35 and told.changed == sum(x != y for x, y in flat)
    asked = (sum((x - y) ** 2 for x, y in flat) / sum(x * x for x, _ in flat)) ** 0.5
    assert told.relative_l2 == pytest.approx(asked, rel=1e-12)
    assert told.max_abs == max(abs(x - y) for x, y in flat)


def test_what_counts_as_a_change():
    nan, inf = torch.nan, torch.inf

    def told(a, b):
        return measure(torch.tensor(a), torch.tensor(b)).row("w")

    assert told([0.0, nan, inf], [-0.0, nan, inf]).changed == 0
    assert told([0.0, nan, inf], [-0.0, nan, inf]).relative_l2 is None  # the norm of the first is none
    broken = told([1.0, 2.0], [nan, 2.0])
    assert broken.changed == 1 and broken.max_abs is None and broken.relative_l2 is None
    assert told([0.0], [1.0]).relative_l2 is None and told([0.0], [0.0]).relative_l2 == 0
    x = torch.randn(1000)
    for half in (torch.float16, torch.bfloat16):
        assert measure(x, x.to(half)).changed == 0 == measure(x.to(half), x).changed
    assert measure(x.half(), x.bfloat16()).changed > 0
    assert measure(torch.tensor(7), torch.tensor(9)).row("w").max_abs == 2


@pytest.mark.parametrize("gelu", [False, True], ids=["clip", "open-clip"])
def test_every_layout_shows_the_same_difference(gelu, tmp_path):
    two(tmp_path, gelu)
    forms = {side: forms_of(tmp_path / side) for side in "ab"}
    asked = {f"unet.{name}" for name in MOVED}
    for first, second in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 1), (3, 0), (2, 3), (3, 1)]:
        told = difference(str(forms["a"][first]), str(forms["b"][second]), by="parameter")
        names = {row.name for row in told.rows}
        both_whole, both_ldm = first < 2 and second < 2, first % 2 and second % 2
        assert len(names) == 2 + both_whole and (both_ldm or asked <= names), (first, second)
        for row in told.rows:
            if "text" not in row.name and "cond_stage" not in row.name:
                assert row.changed == 3 and row.max_abs == pytest.approx(0.25, rel=1e-5)
        assert not told.other_shape and not told.identical
        assert bool(told.only_a or told.only_b) is ((first < 2) != (second < 2))
    whole = difference(str(tmp_path / "a"), str(forms["b"][1]))
    assert [row.name for row in whole.rows] == [
        "unet.down_blocks.0.attentions.0",
        "unet.conv_out",
        "text_encoder",
    ]
    assert difference(str(forms["a"][1]), str(tmp_path / "a")).identical


def forms_of(directory):
    """A pipeline as directory, single file, UNet under diffusers' names, and UNet under LDM's without their prefix."""
    single, unet, bare = (directory.with_name(f"{directory.name}-{n}.safetensors") for n in range(3))
    export(directory, "single-file", output=single)
    export(directory, "unet-only", output=unet)
    whole, prefix = load_file(single), "model.diffusion_model."
    save_file({name.removeprefix(prefix): t for name, t in whole.items() if name.startswith(prefix)}, bare)
    return directory, single, unet, bare


def test_half_precision_differs_in_nothing(pair, tmp_path):
    export(pair / "a", "single-file", output=tmp_path / "h.safetensors", dtype="float16")
    told = difference(str(pair / "a"), str(tmp_path / "h.safetensors"))
    assert told.identical and told.rounded == told.tensors > 100


def test_groups_and_their_order():
    names = [
        "vae.decoder.conv_in.weight", "unet.up_blocks.1.attentions.2.proj_in.bias", "unet.down_blocks.10.resnets.0.conv1.bias",
        "unet.down_blocks.2.resnets.0.conv1.bias", "unet.mid_block.resnets.0.conv1.weight", "unet.conv_in.bias", "unet.conv_out.bias",
        "unet.time_embedding.linear_1.bias",
    ]  # fmt: skip
    told = [group_of(name, "block") for name in sorted(names, key=network_order)]
    assert told == [
        "unet.conv_in", "unet.time_embedding", "unet.down_blocks.2.resnets.0", "unet.down_blocks.10.resnets.0", "unet.mid_block.resnets.0",
        "unet.up_blocks.1.attentions.2", "unet.conv_out", "vae",
    ]  # fmt: skip
    assert (
        group_of("model.diffusion_model.input_blocks.4.1.norm.bias", "block")
        == "model.diffusion_model.input_blocks.4.1"
    )
    assert (
        group_of("unet.a.b.weight", "layer") == "unet.a.b"
        and group_of("unet.a.b.weight", "parameter") == "unet.a.b.weight"
    )


def test_other_shapes_and_other_models(pair, tmp_path):
    file, other = tmp_path / "u.safetensors", tmp_path / "v.safetensors"
    export(pair / "a", "unet-only", output=file)
    tensors = load_file(file)
    save_file(tensors | {"conv_in.weight": torch.zeros(8, 9, 3, 3), "extra": torch.zeros(1)}, other)
    told = difference(str(file), str(other))
    assert told.other_shape == ("unet.conv_in.weight",) and told.only_b == ("unet.extra",) and not told.rows
    assert not told.identical
    for bad, says in (
        (MODEL_DIR / "judge.safetensors", "no Stable Diffusion checkpoint"),
        (tmp_path / "none", "does not exist"),
    ):
        done = runner.invoke(app, ["diff", str(file), str(bad)])
        assert done.exit_code == 1 and says in str(done.exception) and "--model" not in str(done.exception)
    torch.save(tensors, tmp_path / "u.ckpt")
    assert "is a pickle" in str(runner.invoke(app, ["diff", str(file), str(tmp_path / "u.ckpt")]).exception)


def test_diff_on_the_command_line(run, tmp_path):
    plot = tmp_path / "d.svg"
    done = runner.invoke(app, ["diff", "tiny", str(run), "--by", "layer", "--plot", str(plot), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (
        told["plot"] == str(plot)
        and 0 < told["changed"] < told["weights"]
        and told["share"] == told["changed"] / told["weights"]
    )
    assert {row["name"].split(".")[0] for row in told["rows"]} == {"unet"}
    assert sum(row["changed"] for row in told["rows"]) == told["changed"]
    root = xml.etree.ElementTree.parse(plot).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "weights changed, %" in plot.read_text()
    done = runner.invoke(app, ["diff", "tiny", str(run), "--limit", "2"])
    assert done.exit_code == 0 and done.stdout == "" and "2 are shown" in done.stderr
    assert "identical  yes" in runner.invoke(app, ["diff", str(run), str(run / "model")]).stderr
    assert runner.invoke(app, ["diff", "tiny", str(run), "--plot", "x.png"]).exit_code == 2
    assert "is a delta" in str(runner.invoke(app, ["diff", "tiny", str(run / "delta.safetensors")]).exception)


# ---------------------------------------------------------------- verify


def failing(folder):
    told = verify(folder)
    found = [check.what for check in told.checks if check.holds is False]
    assert told.holds is not bool(found)
    return found


def spoil(file, change):
    """Write a tensor file again with one value changed."""
    from safetensors import safe_open

    told, tensors = safe_open(file, "pt").metadata(), load_file(file)
    change(tensors)
    save_file(tensors, file, told)


def test_a_whole_run_holds(run, copy):
    export(copy, "single-file", output=copy / "one.safetensors")
    done = runner.invoke(app, ["verify", str(copy), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    whats = [check["what"] for check in told["checks"]]
    assert told["holds"] and all(check["holds"] for check in told["checks"]) and len(told["never_checked"]) == 4
    assert whats == [
        "settings",
        "stages",
        "model",
        "base",
        "vae",
        "text_encoder",
        "selection",
        "delta",
        "export one.safetensors",
    ]
    done = runner.invoke(app, ["verify", str(copy)])
    assert done.exit_code == 0 and done.stdout == "" and "bit for bit" in done.stderr and "not checked" in done.stderr


def add_one(name):
    def change(tensors):
        tensors[name].view(-1)[0] += 1

    return change


def test_every_spoilt_part_is_named(copy):
    export(copy, "unet-only", output=copy / "u.safetensors")
    assert not failing(copy)
    places = {
        UNET_FILE: ("conv_in.bias", ["model", "selection"]),
        "vae/diffusion_pytorch_model.safetensors": ("quant_conv.bias", ["vae"]),
    }
    for file, (name, asked) in places.items():
        file = copy / "model" / file
        kept = file.read_bytes()
        spoil(file, add_one(name))
        assert failing(copy) == asked
        file.write_bytes(kept)
    spoil(copy / "u.safetensors", add_one("conv_in.bias"))
    assert failing(copy) == ["export u.safetensors"]
    (copy / "u.safetensors").unlink()
    for name in ("selection.safetensors", "delta.safetensors", "data.safetensors"):
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(kept[:-8])
        assert failing(copy), name
        (copy / name).write_bytes(kept)
    spoil(copy / "delta.safetensors", add_one("values"))
    assert failing(copy) == ["delta"]
    (copy / "data.safetensors").unlink()
    assert failing(copy) == ["stage data", "delta"]


@pytest.mark.parametrize(
    ("path", "value", "asked"),
    [
        (("settings", "recipe"), "alchemy", ["settings"]), (("settings", "seed"), 5, ["result"]), (("settings", "more"), 1, ["settings"]),
        (("result", "weights_sha256"), "0" * 64, ["model", "delta"]), (("source", "weights_sha256"), "0" * 64, ["base", "delta"]),
        (("stages", "data"), 7, ["stages"]),
    ],
)  # fmt: skip
def test_a_manifest_that_says_something_else(copy, path, value, asked):
    manifest = json.loads((copy / "run.json").read_text())
    manifest[path[0]][path[1]] = value
    (copy / "run.json").write_text(json.dumps(manifest))
    assert failing(copy) == asked


def test_a_base_that_is_not_here_is_said_and_no_failure(copy):
    manifest = json.loads((copy / "run.json").read_text())
    manifest["source"]["model"] = manifest["settings"]["model"] = "nobody/nothing"
    (copy / "run.json").write_text(json.dumps(manifest))
    told = verify(copy)
    assert told.holds
    unknown = [check.what for check in told.checks if check.holds is None]
    assert unknown == ["base", "VAE, text encoders", "selection", "delta"]


def test_verify_fails_in_one_line(copy, tmp_path):
    spoil(copy / "model" / UNET_FILE, add_one("conv_in.bias"))
    done = runner.invoke(app, ["verify", str(copy), "--json"])
    assert done.exit_code == 1 and isinstance(done.exception, UserError) and not json.loads(done.stdout)["holds"]
    assert "does not hold: model: the UNet has sha256" in str(done.exception) and "\n" not in str(done.exception)
    assert "is not a run directory" in str(runner.invoke(app, ["verify", str(tmp_path)]).exception)
    (copy / "model" / "model_index.json").unlink()
    assert failing(copy)[0] == "model"
