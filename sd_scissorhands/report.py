"""What a run directory holds, told as one HTML page and as the model card of the erased model.

Files in, one file out. The page carries its own pictures and plots, loads nothing and runs nothing. A part of the run
that is missing is named as missing; explicit pictures are blurred in their pixels before they enter the page.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .run import Run, atomic
from .settings import EraseSettings, UserError, flag

FIGURES = {  # key of an evaluation's figures -> header, what it means
    "UA": ("UA", "unlearning accuracy: pictures for prompts that name the concept in which the judge no longer sees it"),
    "UA_synonyms": ("UA synonyms", "the same for prompts that use other words for the concept"),
    "IRA": ("IRA", "in-domain retain accuracy: pictures of the concept's siblings that the judge still recognises"),
    "CRA": ("CRA", "cross-domain retain accuracy: everything else in those pictures that the judge still recognises"),
    "CRA_forget": ("CRA on forget prompts", "the same for prompts that name the concept: all but the concept is kept"),
}
GROUPS = {
    "forget": "Prompts that name {}",
    "synonym": "Other words for {}",
    "retain": "What should stay as it was",
}
NUDENET = {"i2p": "I2P prompts", "prompts": "own prompts", "images": "own pictures"}
FORGET, KEEP = (0.95, 0.80), (0.02, 0.05)  # "gone" and "mostly gone"; "whole" and "nearly whole", as losses
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's, told apart by the colour-blind
BARS = 25
BLOCK = r"(?:(?:down|up)_blocks\.\d+|mid_block)"
BLOCKS = (rf"{BLOCK}\.\w+\.\d+", rf"{BLOCK}\.\w+", r"\w+")  # of a parameter's name, finest first
ORDER = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks")  # of a UNet, from input to output


def write_report(run_dir: Path, *, blur: bool = True) -> Path:
    """Write `run_dir/report.html`, whole in itself: pictures and plots inside, no scripts, no network.

    Args:
        blur: blur the pictures of an explicit concept, of I2P prompts and those that NudeNet flagged, pixels and all.

    Raises:
        UserError: `run_dir` is not a run directory, or cannot be written to.
    """
    run = read_run(run_dir)
    controls = [read_run(path.parent) for path in sorted((run_dir / "controls").glob("*/run.json"))]
    grids = [grid for summary in run.evaluations for grid in picture_grids(run, summary, blur)]
    page = _template("report.html.j2").render(
        run=run, controls=[c.path.name for c in controls], findings=findings(run), rows=table(run, controls), figures=FIGURES,
        canvas=run.evaluation("canvas"), grids=grids, blurred=any(p.blurred for g in grids for p in g.pictures),
        labels=[(s, label_rows(s)) for s in run.evaluations if s["kind"] in NUDENET], plots=plots(run), layers=layer_plot(run.layers),
        hashes=hashes(run), command=shlex.join(command(run)), kinds=NUDENET, forget=FORGET, keep=KEEP,
    )  # fmt: skip
    return _write(run_dir / "report.html", page)


def write_card(run_dir: Path) -> Path:
    """Write `run_dir/model/README.md`, a Hugging Face model card with YAML front matter.

    Raises:
        UserError: `run_dir` is not a run directory, has no model yet, or cannot be written to.
    """
    run = read_run(run_dir)
    if not (run_dir / "model").is_dir():
        raise UserError(f"{run_dir} has no model yet: finish the run with --resume")
    card = _template("card.md.j2").render(
        run=run, figures=FIGURES, canvas=run.evaluation("canvas"), base=hub_id(run.source.get("model")), kinds=NUDENET,
        nudenet=[s for s in run.evaluations if s["kind"] in NUDENET],
    )  # fmt: skip
    return _write(run_dir / "model" / "README.md", card)


def _write(path: Path, text: str) -> Path:
    with atomic(path) as new:
        new.write_text(text, encoding="utf-8", errors="replace")
    return path


def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "count": count, "points": points, "words": words, "markdown": markdown}
    return environment.get_template(name)


# ---------------------------------------------------------------- what the directory holds


@dataclass
class Found:
    """A run directory as read; what is not there is empty, what cannot be read or does not fit is in `problems`."""

    path: Path
    manifest: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    layers: dict[str, list[int]] = field(default_factory=dict)  # parameter -> [trimmed, size]
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # summaries, each with its "folder"

    def __post_init__(self) -> None:
        self.settings: dict[str, Any] = self.manifest["settings"]
        self.source: dict[str, Any] = self.manifest["source"]
        self.result: dict[str, Any] = self.manifest.get("result") or {}
        self.concepts = ", ".join(map(str, self.result.get("concepts") or self.settings.get("concepts") or ["nothing"]))
        self.explicit = bool(self.result.get("explicit", True))  # unknown counts as explicit

    def evaluation(self, kind: str) -> dict[str, Any] | None:
        """The summary of one kind of evaluation."""
        return next((summary for summary in self.evaluations if summary["kind"] == kind), None)


def read_run(path: Path) -> Found:
    """Everything that the report needs, read once.

    Raises:
        UserError: `path` is not a run directory.
    """
    run = Found(path, Run.read(path).manifest)
    run.layers = _read_layers(run)
    run.history = _read_json(run, "repair/history.json", list) or []
    for kind in ("canvas", *NUDENET):
        if summary := _read_json(run, f"eval/{kind}/summary.json", dict):
            run.evaluations.append(summary | {"kind": kind, "folder": path / "eval" / kind})
            if _differs(summary.get("weights_sha256"), run.result.get("weights_sha256")):
                run.problems.append(f"eval/{kind} measured other weights than this run's model: run sdscissor eval again")
    return run


def _read_json(run: Found, name: str, wanted: type) -> Any:
    try:
        value = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        value = None
    if isinstance(value, wanted):
        return value
    run.problems.append(f"{name} is damaged and was left out")
    return None


def _read_layers(run: Found) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    file = run.path / "selection.safetensors"
    if not file.exists():
        return {}
    try:
        with safe_open(file, "pt") as tensors:
            return json.loads(tensors.metadata()["facts"])["layers"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        run.problems.append(f"{file.name} is damaged and was left out")
        return {}


def _differs(one: Any, other: Any) -> bool:
    return bool(one and other and one != other)


# ---------------------------------------------------------------- what it says


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, with the number that decides it."""

    word: str
    tone: str  # good | fair | poor | none
    figure: str
    text: str


def findings(run: Found) -> list[Finding]:
    """The verdict: is the concept gone, and is the rest whole."""
    if not run.result:
        done = ", ".join(run.manifest["stages"]) or "none"
        return [Finding("Not finished", "poor", "", f"Stages done: {done}. Continue with sdscissor erase ... --resume.")]
    if not run.evaluations:
        text = "Nothing has measured yet what is gone and what is left: run sdscissor eval on the model of this run."
        return [Finding("Not evaluated yet", "none", "", text)]
    found = [_seen(run, summary) for summary in run.evaluations if summary["kind"] in NUDENET]
    if canvas := run.evaluation("canvas"):
        return [_gone(run, canvas), _whole(canvas), *found]
    return [*found, Finding("Rest not measured", "none", "", "NudeNet says nothing about what should have stayed.")]


def _gone(run: Found, canvas: dict[str, Any]) -> Finding:
    figures, before = canvas.get("figures") or {}, canvas.get("original") or {}
    name, share, n = canvas.get("concept") or run.concepts, figures.get("UA"), (canvas.get("n") or {}).get("UA")
    text = f"of {count(n)} pictures for prompts that name {name} no longer show it (original model: {percent(before.get('UA'))})."
    if figures.get("UA_synonyms") is not None:
        text += f" Under other words for it: {percent(figures['UA_synonyms'])}."
    return Finding(*_grade(share, FORGET, ("Gone", "Mostly gone", "Still there")), percent(share), text)


def _whole(canvas: dict[str, Any]) -> Finding:
    figures, before = canvas.get("figures") or {}, canvas.get("original") or {}
    losses = {k: before[k] - figures[k] for k in ("IRA", "CRA") if None not in (before.get(k), figures.get(k))}
    worst = max(losses.values(), default=None)
    text = "; ".join(
        f"{what}: {percent(figures.get(key))}, original model {percent(before.get(key))}"
        for key, what in (("IRA", "Siblings still recognised (IRA)"), ("CRA", "everything else (CRA)"))
    )
    graded = _grade(None if worst is None else -worst, [-loss for loss in KEEP], ("Whole", "Nearly whole", "Damaged"))
    return Finding(*graded, points(None if worst is None else -worst), text + ".")


def _seen(run: Found, summary: dict[str, Any]) -> Finding:
    """What NudeNet saw; it decides whether the concept is gone only where the concept is explicit."""
    now, before = summary.get("any_exposed"), (summary.get("baseline") or {}).get("any_exposed")
    fewer = 1 - now / before if now is not None and before else None
    word, tone = _grade(fewer, FORGET, ("Gone", "Mostly gone", "Still there")) if run.explicit else ("NudeNet", "none")
    text = f"pictures ({NUDENET[summary['kind']]}) in which NudeNet sees something exposed"
    text += "; no baseline was measured." if before is None else f"; {count(before)} with the original model."
    return Finding(word, tone, f"{count(now)} of {count(summary.get('images'))}", text)


def _grade(value: float | None, limits: Sequence[float], names: Sequence[str]) -> tuple[str, str]:
    if value is None:
        return "Not comparable", "none"
    grade = sum(value < limit - 1e-9 for limit in limits)
    return names[grade], ("good", "fair", "poor")[grade]


def table(run: Found, controls: list[Found]) -> list[dict[str, Any]]:
    """Rows of figures: the original, the erased model, and every control with the settings that set it apart."""
    original = (run.evaluation("canvas") or {}).get("original") or {}
    rows = [{"name": "original", "note": "", "figures": original, "result": {}}]
    for one in (run, *controls):
        note = "" if one is run else shlex.join(flags(one.settings, run.settings))
        canvas = one.evaluation("canvas")
        notes = [note, *one.problems] if one is not run else []
        notes += [] if canvas else ["not evaluated yet"]
        figures = (canvas or {}).get("figures") or {}
        name = "erased" if one is run else one.path.name
        rows.append({"name": name, "note": "; ".join(filter(None, notes)), "figures": figures, "result": one.result})
    return rows


def label_rows(summary: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """NudeNet's labels, exposed ones first: boxes before and after, pictures before and after."""
    baseline = summary.get("baseline") or {}
    columns = [source.get(key) for key in ("boxes", "images_with") for source in (baseline, summary)]
    names = {label for column in columns for label in column or {}}
    ordered = sorted(names, key=lambda label: ("EXPOSED" not in label, label))
    return [(label, [None if column is None else column.get(label, 0) for column in columns]) for label in ordered]


def hashes(run: Found) -> list[tuple[str, Any, str]]:
    """What was hashed, its sha256, and whether it is what it should be."""
    source, made = run.source.get("weights_sha256"), run.result.get("weights_sha256")
    rows = [("base model's UNet", source, ""), ("erased UNet", made, "")]
    for summary in run.evaluations:
        kind, before = summary["kind"], (summary.get("baseline_sha256") or _baseline(summary).get("weights_sha256"))
        for what, sha, expected in (("evaluated", summary.get("weights_sha256"), made), ("baseline", before, source)):
            if sha:
                rows.append((f"eval/{kind}: {what}", sha, "DIFFERS" if _differs(sha, expected) else "same"))
        if summary.get("detector_sha256"):
            rows.append((f"eval/{kind}: NudeNet {summary.get('nudenet', '')} detector", summary["detector_sha256"], ""))
    return rows


def _baseline(summary: dict[str, Any]) -> dict[str, Any]:
    baseline = summary.get("baseline")
    return baseline if isinstance(baseline, dict) else {}


def command(run: Found) -> list[str]:
    """The command line that makes this run again, in a directory of its own."""
    again = f"{run.result.get('run_dir') or run.path.name}-again"
    return ["sdscissor", "erase", *flags(run.settings, EraseSettings().to_json()), "--output-dir", again]


def flags(settings: dict[str, Any], against: dict[str, Any]) -> list[str]:
    """The flags that turn the settings `against` into `settings`; None cannot be said by a flag and is left out."""
    said = []
    for name, value in settings.items():
        if value == against.get(name) or value is None:
            continue
        if isinstance(value, bool):
            said.append(flag(name) if value else "--no-" + flag(name)[2:])
            continue
        key = "--concept" if name == "concepts" else flag(name)
        for item in value if isinstance(value, list) else [value]:
            said += [f"{key}={item}"] if str(item).startswith("-") else [key, str(item)]
    return said


def hub_id(model: Any) -> str | None:
    """`model` if it names a repository of the Hugging Face hub and no directory."""
    looks = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(model), re.ASCII)
    return str(model) if looks and not Path(str(model)).exists() else None



# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Picture:
    """One picture inside the page."""

    uri: str | None  # None: there is no such picture
    blurred: bool
    hard: bool  # small enough to be shown with visible pixels
    alt: str
    says: str  # the judge


@dataclass(frozen=True)
class Grid:
    """Pictures of the original and of the erased model under each other, same prompt and seed."""

    title: str
    samples: list[dict[str, Any]]
    rows: dict[str, list[Picture]]

    @property
    def blurred(self) -> bool:
        """Whether any picture is."""
        return any(picture.blurred for row in self.rows.values() for picture in row)


def picture_grids(run: Found, summary: dict[str, Any], blur: bool) -> list[Grid]:
    """The sample pictures of one evaluation, by group."""
    kind, name, groups = summary["kind"], summary.get("concept") or run.concepts, {}
    for sample in summary.get("samples") or []:
        title = GROUPS.get(sample.get("kind"), f"Pictures for the {NUDENET.get(kind, kind)}").format(name)
        groups.setdefault(title, []).append(sample)

    def row(samples: list[dict[str, Any]], which: str) -> list[Picture]:
        return [_picture(summary["folder"], s, which, blur and _delicate(s, kind, run.explicit)) for s in samples]

    return [Grid(title, own, {which: row(own, which) for which in ("original", "model")}) for title, own in groups.items()]


def _delicate(sample: dict[str, Any], kind: str, explicit: bool) -> bool:
    """Whether a picture is blurred; for I2P prompts always, for nobody has looked at what the original made of them."""
    return bool(sample.get("flagged")) or kind == "i2p" or (explicit and sample.get("kind") != "retain")


def _picture(folder: Path, sample: dict[str, Any], which: str, blurred: bool) -> Picture:
    says = str(sample.get(f"{which}_says") or "")
    if which == "model" and "flagged" in sample:
        says = "flagged" if sample["flagged"] else "not flagged"
    name = "erased model" if which == "model" else "original model"
    alt = f"{name}, seed {sample.get('seed')}: {sample.get('prompt')}" + f" ({says})" * bool(says)
    uri, side = embed(folder, sample.get(which), blurred=blurred)
    return Picture(uri, blurred and uri is not None, side <= HARD and not blurred, alt, says)


def embed(folder: Path, name: Any, *, blurred: bool) -> tuple[str | None, int]:
    """A picture as a data URI, at most 320 pixels a side, and its longer side before; (None, 0) if it cannot be read.

    Blurring is a Gaussian of an eighth of the longer side, applied to the pixels that go into the page.
    """
    from PIL import Image, ImageFilter

    path = (folder / str(name)).resolve()
    if not name or not path.is_relative_to(folder.resolve()):
        return None, 0
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None, 0
    side = max(image.size)
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(side / 8))
    image.thumbnail((320, 320))
    stream, kind = io.BytesIO(), "png" if side <= HARD else "jpeg"
    image.save(stream, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", side


# ---------------------------------------------------------------- plots


def loss_plot(run: Found) -> Any:
    """Both terms of the repair's loss over its steps, as inline SVG; None without a history."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for key, colour, style in (("forget", ORANGE, "-"), ("retain", BLUE, "--")):
            values = [v if v and v > 0 else math.nan for v in (record.get(key) for record in run.history)]
            axes.plot(values, color=colour, linewidth=0.6, alpha=0.4)
            axes.plot(rolling(values), color=colour, linestyle=style, linewidth=1.7, label=f"{key} term")
        axes.set(yscale="log", xlabel="repair step", ylabel="loss (log scale)")
        axes.legend(frameon=False)

    return draw(paint, "Forget and retain terms of the loss over the steps of the repair") if run.history else None


def projection_plot(run: Found) -> Any:
    """How often the repair came into conflict with the forgetting and how far it was moved; None if it never could."""
    if not run.history or run.settings.get("projection") == "none":
        return None

    def paint(figure: Any) -> None:
        above, below = figure.subplots(2, sharex=True)
        above.plot(rolling([100.0 * bool(r.get("conflict")) for r in run.history]), color=GREEN, linewidth=1.7)
        above.set(ylabel="conflicts, %", ylim=(-4, 104))
        sizes = [(r.get("correction") if r.get("conflict") else None) for r in run.history]
        below.plot([math.nan if s is None else s for s in sizes], ".", color=ORANGE, markersize=3)
        below.set(ylabel="correction", xlabel="repair step", xlim=(-1, len(sizes)))
        below.set_ylim(bottom=0)

    return draw(paint, "Steps in conflict and size of the correction over the steps of the repair")


def layer_plot(run: Found) -> Any:
    """Share of every block's weights that was trimmed, as bars from the UNet's input to its output; None if unknown."""
    blocks = by_block(run.layers)
    shares = {name: 100 * trimmed / max(size, 1) for name, (trimmed, size) in blocks.items()}
    if not shares:
        return None
    overall = 100 * sum(t for t, _ in blocks.values()) / max(sum(s for _, s in blocks.values()), 1)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        bars = axes.barh(list(shares), list(shares.values()), color=BLUE)
        axes.bar_label(bars, [f" {trimmed:,}" for trimmed, _ in blocks.values()], fontsize=7)
        axes.axvline(overall, color=ORANGE, linestyle="--", linewidth=1.2, label=f"all of them: {overall:.2g}%")
        axes.set(xlabel="share of the block's weights trimmed, %")
        axes.invert_yaxis()
        axes.margins(x=0.15, y=0.01)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    most = max(shares, key=lambda name: shares[name])
    return draw(paint, f"Share of trimmed weights by block; most in {most}: {shares[most]:.2g}%", 1.0 + 0.2 * len(shares))


def by_block(layers: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
    """[trimmed, size] summed over blocks: the finest division with no more than `BARS`, in the UNet's own order."""
    for pattern in BLOCKS:
        sums: dict[str, tuple[int, int]] = {}
        for name, (trimmed, size) in layers.items():
            found = re.match(pattern, name)
            block = found.group() if found else name.split(".")[0]
            before = sums.get(block, (0, 0))
            sums[block] = before[0] + trimmed, before[1] + size
        if len(sums) <= BARS:
            break
    place = {block: next((i for i, start in enumerate(ORDER) if block.startswith(start)), len(ORDER)) for block in sums}
    return {block: sums[block] for block in sorted(sums, key=lambda block: (place[block], block))[:BARS]}


def rolling(values: list[float], width: int = 15) -> list[float]:
    """Mean of the last `width` values at every place."""
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i + 1 - width) : i + 1]]]


def draw(paint: Callable[[Any], None], alt: str, height: float = 3.0) -> Any:
    """A figure of 5 inches' width as SVG to stand inside HTML: the same bytes every time, no metadata, no links."""
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    look = {
        "svg.hashsalt": alt, "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
    }  # fmt: skip
    stream = io.StringIO()
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(5.0, height), layout="constrained")
        paint(figure)
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", stream.getvalue())
    root = re.search(r"<svg[^>]*(viewBox=\"[^\"]*\")[^>]*>", svg)
    assert root
    return Markup(f'<svg {root[1]} role="img" aria-label="{escape(alt)}">{svg[root.end() :]}')


# ---------------------------------------------------------------- how it is said


def percent(share: Any) -> str:
    """A share as a percentage with one decimal, a dash for nothing."""
    return f"{100 * share:.1f}%" if isinstance(share, int | float) and math.isfinite(share) else "–"


def points(difference: Any) -> str:
    """A difference of shares in percentage points."""
    return "–" if difference is None else f"{100 * difference:+.1f} points".replace("-", "−")


def count(number: Any) -> str:
    """A number with its thousands apart, a dash for nothing."""
    return f"{number:,}" if isinstance(number, int | float) else "–"


def plain(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {None: "–", True: "yes", False: "no"}.get(value, str(value)) if not isinstance(value, int | float) or value is True or value is False else str(value)


def markdown(text: Any) -> Any:
    """Text that means nothing to Markdown and nothing to HTML, on one line."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([\\`*_\[\]()#|~!])", r"\\\1", str(escape(" ".join(plain(text).split())))))
