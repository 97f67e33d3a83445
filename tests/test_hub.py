"""The card and the hub: the licence carried over, and uploads to a hub on this machine; no other is ever asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from fake_hub import TOKEN, fake_hub
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load, save_file
from small_pipelines import build
from typer.testing import CliRunner

from sd_scissorhands.cli import app
from sd_scissorhands.erasure import erase
from sd_scissorhands.models.hub import Repo, first_line
from sd_scissorhands.models.licence import for_derived_card, read_licence
from sd_scissorhands.models.shareable import VOCABULARIES
from sd_scissorhands.report import card_text, write_card
from sd_scissorhands.settings import UsageError, UserError
from sd_scissorhands.tiny import MODEL_DIR

runner = CliRunner()
REPO = "me/tiny-without-heart"


@pytest.fixture(scope="module")
def run(tmp_path_factory, short):
    """A finished run of seconds."""
    folder = tmp_path_factory.mktemp("runs") / "heart"
    erase(replace(short, steps=1, sampling_steps=1, score_draws=1, retain_count=4), folder)
    write_card(folder)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub that huggingface_hub takes for the only one, and a token for it."""
    with fake_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def called(*arguments):
    return runner.invoke(app, [str(one) for one in arguments])


def refused(*arguments):
    """The one line of a command that must fail."""
    done = called(*arguments)
    assert done.exit_code == 1 and done.stdout == "" and isinstance(done.exception, UserError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def told_by(text, folder):
    """The first lines of a card as the hub's own library reads them."""
    (folder / "card.md").write_text(text)
    return ModelCard.load(folder / "card.md").data.to_dict()


# ---------------------------------------------------------------- the licence


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("license: creativeml-openrail-m", {"license": "creativeml-openrail-m"}),
        ("license: other\nlicense_name: flux-1-dev\nlicense_link: LICENSE.md",
         {"license": "other", "license_name": "flux-1-dev", "license_link": "LICENSE.md"}),
        ("license: mit\nlicense_link: 'javascript:alert(1)'", {"license": "mit"}),
        ("license: mit\nlicense_link: https://a.b/<script>", {"license": "mit"}),
        ("license: 'mit\n\n  evil: true'", {}),
        ("license: [mit, gpl]", {}), ("license: 3", {}), ("license_name: x", {}), ("tags: []", {}), ("- a\n- b", {}),
        ("license: {", {}), ("&a [*a]", {}),
    ],
)  # fmt: skip
def test_a_licence_is_read_from_its_card(said, kept, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{said}\n---\n# A model\n")
    assert read_licence(tmp_path) == kept


def test_no_card_no_licence(tmp_path):
    assert read_licence(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe---\n")
    assert read_licence(tmp_path) == {}
    assert read_licence(MODEL_DIR) == {"license": "apache-2.0"}


def test_a_link_beside_the_bases_card_is_made_whole():
    told = {"license": "other", "license_link": "LICENSE.md"}
    assert for_derived_card(told, "a/b")["license_link"] == "https://huggingface.co/a/b/blob/main/LICENSE.md"
    assert for_derived_card(told, None) == {"license": "other"}
    assert for_derived_card(told | {"license_link": "https://a.b/c"}, None)["license_link"] == "https://a.b/c"


# ---------------------------------------------------------------- the card


def test_the_card_of_a_run_says_its_licence_to_the_hub(run, tmp_path):
    text = (run / "model/README.md").read_text()
    assert told_by(text, tmp_path) == {
        "license": "apache-2.0", "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "concept-erasure", "sd_scissorhands"],
    }  # fmt: skip
    assert (
        "\nlicense: apache-2.0\n" in text and "The licence of the base model (apache-2.0) continues to apply." in text
    )
    assert json.loads((run / "run.json").read_text())["result"]["licence"] == {"license": "apache-2.0"}
    assert read_licence(run / "model") == {"license": "apache-2.0"}  # for whoever starts from this model


def test_a_card_with_everything_and_one_with_nothing(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)

    def card(model, licence):
        manifest = json.loads((folder / "run.json").read_text())
        manifest["source"]["model"], manifest["result"]["licence"] = model, licence
        (folder / "run.json").write_text(json.dumps(manifest))
        return card_text(folder)

    text = card(
        "black/flux@main:fp16", {"license": "other", "license_name": "non-commercial", "license_link": "LICENSE.md"}
    )
    told = told_by(text, tmp_path)
    link = "https://huggingface.co/black/flux/blob/main/LICENSE.md"
    assert told["base_model"] == "black/flux" and told["license"] == "other"
    assert told["license_name"] == "non-commercial" and told["license_link"] == link
    assert "(non-commercial, https" in text
    text = card("/some/where", {})
    assert told_by(text, tmp_path).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "- The licence of the base model continues to apply." in text


@pytest.mark.parametrize(
    ("family", "called", "tag"),
    [("sdxl", "Stable Diffusion XL", "stable-diffusion-xl"), ("sd3", "Stable Diffusion 3", "stable-diffusion-3"), ("flux", "FLUX.1", "flux")],
)  # fmt: skip
def test_the_card_fits_the_family(run, family, called, tag, tmp_path):
    shutil.copyfile(run / "run.json", tmp_path / "run.json")
    build(family, tmp_path / "model")
    text = card_text(tmp_path)
    edited = "UNet" if family == "sdxl" else "transformer"
    assert (
        tag in told_by(text, tmp_path)["tags"] and f"A {called} pipeline" in text and f"This model's {edited}" in text
    )
    assert 'DiffusionPipeline.from_pretrained("path/to/this/directory")' in text
    assert 'DiffusionPipeline.from_pretrained("me/x")' in card_text(tmp_path, repo="me/x")
    text = card_text(tmp_path, repo="me/x", file="u.safetensors", to="unet-only")
    assert f'pipeline.{edited.lower()}.load_state_dict(load_file(hf_hub_download("me/x", "u.safetensors")))' in text


# ---------------------------------------------------------------- uploads


def shared(file):
    """What others see of a file: not where diffusers loaded a part from, if that was a path."""
    values = json.loads(file.read_text()) if file.suffix == ".json" and file.name not in VOCABULARIES else {}
    if not str(values.get("_name_or_path", "")).startswith("/"):
        return file.read_bytes()
    del values["_name_or_path"]
    return (json.dumps(values, indent=2) + "\n").encode()


@pytest.fixture
def own(run, tmp_path):
    """A copy of a run, to be spoilt."""
    return shutil.copytree(run, tmp_path / "own")


def test_only_the_files_of_the_model_are_uploaded(hub, own):
    model = own / "model"
    (model / "id_rsa").write_text("secret")
    (model / "unet" / "old.safetensors").write_bytes(b"the concept, whole")
    (model / "unet" / "secret.json").write_text("{}")
    (model / "notes").mkdir()
    (model / "notes" / "config.json").write_text("{}")
    (model / "secrets").symlink_to(own)
    done = called("export", own, "--push-to-hub", REPO)
    assert done.exit_code == 0, done.output
    names = hub.repos[REPO]["files"].keys()
    assert not [name for name in names if "secret" in name or "old" in name or "notes" in name or "id_rsa" in name]
    assert {"model_index.json", "world.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= names
    said = " ".join(done.output.split())
    assert "no part of the model, not uploaded: id_rsa, notes/config.json, secrets and more" in said


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae"])
def test_a_link_among_the_files_of_the_model_is_refused(hub, own, name, tmp_path):
    (own / "model" / name).rename(tmp_path / "elsewhere")
    (own / "model" / name).symlink_to(tmp_path / "elsewhere")
    text = refused("export", own, "--push-to-hub", REPO)
    assert "is a link, and links are not uploaded" in text and not hub.repos.get(REPO)


def spoil(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_paths_of_this_machine_are_not_uploaded(hub, own):
    spoil(
        own / "model" / "vae" / "config.json",
        _name_or_path="/home/somebody/models/vae",
        nested={"name_or_path": "file:///mnt/x/y"},
    )
    manifest = json.loads((own / "run.json").read_text())
    manifest["source"]["model"] = "/home/somebody/models/sd14"
    manifest["settings"] |= {"model": "/home/somebody/models/sd14", "forget_images": "/home/somebody/pictures"}
    (own / "run.json").write_text(json.dumps(manifest))
    done = called("export", own, "--push-to-hub", REPO)
    assert done.exit_code == 0, done.output
    files = hub.repos[REPO]["files"]
    assert not [name for name, content in files.items() if b"somebody" in content or b"/mnt/x" in content]
    assert "| model | sd14 |" in files["README.md"].decode() and "Base model: sd14" in files["README.md"].decode()
    assert json.loads(files["vae/config.json"])["nested"] == {}


def test_other_paths_of_this_machine_are_refused_by_file(hub, own, tmp_path):
    spoil(own / "model" / "vae" / "config.json", trained_on="C:\\Users\\somebody\\data")
    text = refused("export", own, "--push-to-hub", REPO)
    assert text.startswith("vae/config.json names a path of this machine (C:\\Users") and not hub.repos.get(REPO)
    save_file({"x": torch.zeros(1)}, tmp_path / "f.safetensors", {"ss_sd_model_name": "/home/somebody/sd.safetensors"})
    text = refused("export", tmp_path / "f.safetensors", "--push-to-hub", REPO)
    assert "f.safetensors names a path of this machine (/home/somebody/sd.safetensors)" in text and not hub.repos.get(
        REPO
    )


@pytest.mark.parametrize("to", ["single-file", "unet-only", "delta"])
def test_headers_of_exports_name_no_folder_of_the_base(run, to, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run")
    base = shutil.copytree(MODEL_DIR, tmp_path / "base")
    manifest = json.loads((folder / "run.json").read_text())
    manifest["source"]["model"] = str(base)
    (folder / "run.json").write_text(json.dumps(manifest))
    assert called("export", folder, "--to", to, "--output", tmp_path / "f.safetensors").exit_code == 0
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        header = json.dumps(file.metadata())
    assert str(tmp_path) not in header and "base" in header and manifest["source"]["weights_sha256"] in header


def test_a_run_goes_to_the_hub_whole_and_private(hub, run):
    done = called("export", run, "--push-to-hub", REPO, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"uploaded": str(run), "hub": f"{hub.url}/{REPO}"}
    repo = hub.repos[REPO]
    here = {file.relative_to(run / "model").as_posix(): file for file in (run / "model").rglob("*") if file.is_file()}
    assert repo["private"] and repo["files"].keys() == here.keys()
    for name, content in repo["files"].items():
        assert name == "README.md" or content == shared(here[name])
    assert f'from_pretrained("{REPO}")' in repo["files"]["README.md"].decode()
    assert "path/to/this/directory" in (run / "model/README.md").read_text()
    recipe = json.loads((run / "run.json").read_text())["result"]["recipe"]
    assert repo["messages"] == [f"heart erased by sd_scissorhands ({recipe}, seed 0)"]
    assert any(asked.startswith("PUT /lfs/") for asked in hub.asked)
    assert called("export", run, "--push-to-hub", REPO).exit_code == 0 and len(repo["messages"]) == 2


def test_an_exported_file_goes_with_its_card(hub, run, tmp_path):
    for to, said in (
        (
            "single-file",
            'StableDiffusionPipeline.from_single_file("https://huggingface.co/acme/single-file/blob/main/',
        ),
        ("unet-only", "pipeline.unet.load_state_dict"),
        ("delta", "sdscissor apply tiny delta.safetensors"),
    ):
        out = tmp_path / f"{to}.safetensors"
        done = called("export", run, "--to", to, "--output", out, "--push-to-hub", f"acme/{to}", "--public")
        assert done.exit_code == 0, done.output
        repo = hub.repos[f"acme/{to}"]
        assert not repo["private"] and repo["files"].keys() == {out.name, "README.md"}
        assert repo["files"][out.name] == out.read_bytes() and said in repo["files"]["README.md"].decode()
        assert f"{hub.url}/acme/{to}" in done.stderr
    assert (
        called("export", run, "--dtype", "float16", "--output", tmp_path / "half", "--push-to-hub", REPO).exit_code == 0
    )
    weights = load(hub.repos[REPO]["files"]["unet/diffusion_pytorch_model.safetensors"])
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16"}
    assert called("export", tmp_path / "delta.safetensors", "--push-to-hub", "me/alone").exit_code == 0
    assert hub.repos["me/alone"]["files"].keys() == {"delta.safetensors"}
    assert hub.repos["me/alone"]["messages"] == ["delta.safetensors, by sd_scissorhands"]


def test_a_file_that_only_lies_beside_a_run_gets_no_card_of_it(hub, run, tmp_path):
    folder = tmp_path / "heart"
    shutil.copytree(run, folder)
    for source, name in ((MODEL_DIR, "other"), (run, "own")):
        assert called("export", source, "--output", folder / f"{name}.safetensors").exit_code == 0
        assert called("export", folder / f"{name}.safetensors", "--push-to-hub", f"me/{name}").exit_code == 0
    assert hub.repos["me/other"]["files"].keys() == {"other.safetensors"}
    assert hub.repos["me/own"]["files"].keys() == {"own.safetensors", "README.md"}


def test_erase_pushes_when_it_has_ended(hub, run, short, tmp_path):
    folder = tmp_path / "heart"
    shutil.copytree(run, folder)
    (folder / "model/.cache").mkdir()
    (folder / "model/.cache/secret").write_text("x")
    settings = {
        name: value
        for name, value in json.loads((run / "run.json").read_text())["settings"].items()
        if value is not None
    }
    lines = "\n".join(
        f"{name} = {json.dumps(value)}" for name, value in settings.items() if not isinstance(value, dict)
    )
    (tmp_path / "s.toml").write_text(lines)
    done = called(
        "erase", "--config", tmp_path / "s.toml", "--output-dir", folder, "--resume", "--push-to-hub", REPO, "--json"
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["hub"] == f"{hub.url}/{REPO}" and "model_index.json" in hub.repos[REPO]["files"]
    assert not any("secret" in name for name in hub.repos[REPO]["files"])


def test_an_upload_that_fails_loses_nothing(hub, run, tmp_path):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for part in ("/repos/create", "/preupload", "/lfs/objects", "/commit/"):
        hub.fails = {part: 403}
        text = refused("export", run, "--push-to-hub", REPO, "--public")
        assert text.startswith("the upload failed (403 Forbidden")
        assert f"the model is whole in {run / 'model'}" in text
        assert text.endswith(f"repeat with: sdscissor export {run} --push-to-hub {REPO} --public")
        assert TOKEN not in text
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    out = tmp_path / "one.safetensors"
    text = refused("export", run, "--to", "unet-only", "--output", out, "--push-to-hub", "me/other")
    assert out.exists() and text.endswith(f"repeat with: sdscissor export {out} --push-to-hub me/other")
    hub.fails = {}
    assert called("export", run, "--push-to-hub", REPO, "--public").exit_code == 0


# ---------------------------------------------------------------- before the work


def test_what_cannot_be_is_said_before_the_work(hub, monkeypatch, tmp_path):
    out = tmp_path / "run"

    def fails(repo=REPO, *more):
        text = refused(
            "erase", "--model", "tiny", "--concept", "heart", "--output-dir", out, "--push-to-hub", repo, *more
        )
        assert not out.exists() and not hub.repos.get(repo, {}).get("files")
        return text

    for name in ("tiny", "a/b/c", "me/..", "me/x.git", "https://huggingface.co/me/x", "me/x y", ""):
        assert "is no repository's name: say owner/name" in fails(name)
    assert not hub.asked
    assert "belongs to none of me, acme" in fails("them/x")
    hub.repos[REPO] = {"private": False, "files": {}, "messages": []}
    assert "is public on the hub: add --public" in fails()
    hub.repos[REPO]["private"] = True
    assert "is private on the hub: leave out --public" in fails(REPO, "--public")
    hub.role = "read"
    assert "the token may only read" in fails()
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "does not take the token: log in with `hf auth login` or set HF_TOKEN" in fails()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    assert "needs a token, and there is none: log in with `hf auth login` or set HF_TOKEN" in fails()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it" in fails()


def test_a_hub_that_does_not_answer_is_said_in_one_line(hub, monkeypatch):
    hub.fails = {"whoami": 503}
    with pytest.raises(UserError, match=r"does not answer as it should .*503.*repeat later"):
        Repo(REPO).check()
    hub.fails = {"/api/models/": 503}
    with pytest.raises(UserError, match=r"does not answer as it should .*503"):
        Repo(REPO).check()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="check the network"):
        Repo(REPO).check()


def test_a_file_of_somebody_elses_parts_gets_no_card_of_ours(hub, run):
    assert "whose licence no card here knows" in refused(
        "export", run, "--base", "mine.safetensors", "--push-to-hub", REPO
    )
    assert not hub.asked


def test_public_alone_has_no_effect(run):
    done = called("export", run, "--public")
    assert isinstance(done.exception, UsageError) and "has no effect without --push-to-hub" in str(done.exception)


def test_reasons_are_without_numbers_and_addresses():
    said = "403 Forbidden: no (Request ID: Root=1-a;b) for url 'https://h/x'.\nmore"
    assert first_line(Exception(said)) == "403 Forbidden: no"
    assert first_line(ValueError()) == "ValueError"
