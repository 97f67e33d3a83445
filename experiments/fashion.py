"""The tables of docs/experiments.md on Fashion-MNIST and a ResNet-18: `python experiments/fashion.py [fashion-class|fashion-random]`.

The pictures are those of Debian's package dataset-fashion-mnist; --data names another folder with its four files. Originals and
models retrained without what is to be forgotten are trained here, and stay below --root. At full size this takes hours on a CPU:
--pictures and --seeds make it shorter, and the note under a table says how many there were.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from columns import Rows
from methods import compared, table
from runner import DOCUMENT, Options
from tables import publish

DATA = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CLASS, SHARE = "Dress", 0.1
PICTURES, LEAST, SEEDS = 60_000, 600, 3
EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 5, 128, 0.05, 0.9, 5e-4
UNSEEN = 5000  # of the 10,000 that nothing is trained on: for methods; the others are for figures
SMOKE_UNSEEN = 200
ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy", "gap", "mia")


@dataclass(frozen=True)
class Shelf:
    """Where pictures and models lie, and how many pictures are used."""

    options: Options
    data: Path
    pictures: int  # for training
    epochs: int  # of every training
    bf16: bool = False  # every training under bf16's autocast
    recipes: str | None = None  # parted by commas; None: all
    steps: int | None = None  # of every repair; None: the recipe's own

    @property
    def seeds(self) -> range:
        """Seeds of the trainings and of the tenth; the recipes' own is 0."""
        return range(1 if self.options.smoke else self.options.seeds or SEEDS)


# ---------------------------------------------------------------- pictures


def read(folder: Path, part: str) -> tuple[Any, Any]:
    """Pictures (N, 28, 28) and labels (N,), uint8, of `part`: train or t10k."""
    import numpy

    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return numpy.frombuffer(images, numpy.uint8, offset=16).reshape(-1, 28, 28), numpy.frombuffer(
        labels, numpy.uint8, offset=8
    )


def written(shelf: Shelf) -> Path:
    """The pictures as `sdscissor forget --data` takes them, made unless they are there."""
    import numpy

    file = shelf.options.root / "fashion.npz"
    if not file.exists():
        pictures, labels = read(shelf.data, "train")
        held, answers = read(shelf.data, "t10k")
        middle, end = (SMOKE_UNSEEN, 2 * SMOKE_UNSEEN) if shelf.options.smoke else (UNSEEN, len(held))
        file.parent.mkdir(parents=True, exist_ok=True)
        numpy.savez(
            file, pictures=pictures[: shelf.pictures], labels=labels[: shelf.pictures], val_pictures=held[:middle],
            val_labels=answers[:middle], test_pictures=held[middle:end], test_labels=answers[middle:end], names=CLASSES,
        )  # fmt: skip
    return file


# ---------------------------------------------------------------- models


def fresh(seed: int) -> Any:
    """A ResNet-18 of transformers for one channel, with random weights."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    names = dict(enumerate(CLASSES))
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], id2label=names,
            label2id={name: number for number, name in names.items()},
        )
    )  # fmt: skip


def trained(shelf: Shelf, without: str | None, seed: int) -> tuple[Path, float]:
    """The directory of a model and the seconds of its training; made unless it is there.

    Args:
        without: what is left out of its training pictures, see `forgotten`; None for nothing.
    """
    import numpy

    folder = shelf.options.root / "models" / f"{f'without-{without}' if without else 'original'}-seed{seed}"
    seconds = folder.with_suffix(".json")
    if not seconds.exists():
        with numpy.load(written(shelf)) as data:
            pictures, labels = data["pictures"], data["labels"]
        if without:
            retained = ~forgotten(without, labels, seed)
            pictures, labels = pictures[retained], labels[retained]
        began = time.monotonic()
        model = descended(fresh(seed), pictures, labels, seed, shelf.epochs, bf16=shelf.bf16)
        spent = round(time.monotonic() - began, 1)
        model.save_pretrained(folder)
        seconds.write_text(json.dumps(spent))
        print(f"{folder}: {len(labels)} pictures, {spent:.0f} seconds", flush=True)
    return folder, json.loads(seconds.read_text())


def descended(model: Any, pictures: Any, labels: Any, seed: int, epochs: int, *, bf16: bool = False) -> Any:
    """Train a model in place: SGD with a cosine from its rate to 0, every epoch a new order, whole batches alone; nothing is augmented."""
    import torch

    model = model.to(memory_format=torch.channels_last).train()
    x, y = torch.tensor(pictures)[:, None].float() / 255, torch.tensor(labels).long()
    order, steps = torch.Generator().manual_seed(seed), len(x) // BATCH
    descent = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order)[: steps * BATCH].split(BATCH):
            descent.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(x[rows], labels=y[rows]).loss
            loss.backward()
            descent.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


# ---------------------------------------------------------------- tables


def forgotten(what: str, labels: Any, seed: int) -> Any:
    """Whether each training picture is to be forgotten: those of a class, or a tenth of all by the seed; (N,) bool."""
    import numpy

    if what == "class":
        return labels == CLASSES.index(CLASS)
    order = numpy.random.default_rng(seed).permutation(len(labels))
    return numpy.isin(numpy.arange(len(labels)), order[: round(SHARE * len(labels))])


def target(shelf: Shelf, what: str, seed: int) -> tuple[object, ...]:
    """The flag that names what is to be forgotten. A tenth goes as a list of rows, for the retrained model must lack the same."""
    import numpy

    if what == "class":
        return "--forget-class", CLASS
    with numpy.load(written(shelf)) as data:
        rows = forgotten(what, data["labels"], seed).nonzero()[0]
    file = shelf.options.root / f"tenth-seed{seed}.txt"
    file.write_text("".join(f"{row}\n" for row in rows))
    return "--forget-indices", file


def rows_of(shelf: Shelf, what: str, seed: int) -> Rows:
    """Every recipe on the original of a seed, by `sdscissor compare`; the retrained model's row has the seconds of its training."""
    options = shelf.options
    original, _ = trained(shelf, None, seed)
    retrained, spent = trained(shelf, what, seed)
    settings = {"retrained": str(retrained)} | ({"steps": shelf.steps} if shelf.steps else {})
    words = ["--model", original, "--data", written(shelf), "--device", "cpu", *target(shelf, what, seed)]
    words += [*options.overlay(**settings), *(("--recipes", shelf.recipes) if shelf.recipes else ())]
    rows = compared(dataclasses.replace(options, seeds=1), f"{what}-seed{seed}", *words, seeds=1)
    return [row | ({"seconds": spent} if row["recipe"] == "retrain" else {}) for row in rows]


def table_of(shelf: Shelf, what: str) -> str:
    """A line for every recipe, and what the pictures were."""
    rows = [row for seed in shelf.seeds for row in rows_of(shelf, what, seed)]
    size = (
        f"{shelf.pictures:,} of the {PICTURES:,} training pictures"
        if shelf.pictures < PICTURES
        else "All training pictures"
    )
    training = f"{shelf.epochs} epochs{' in bf16' if shelf.bf16 else ''}"
    steps = f", {shelf.steps} steps of repair" if shelf.steps else ""
    seeds = ", ".join(map(str, shelf.seeds))
    return f"{table(rows, ACCURACIES, {'seconds': 0})} {size}, {training}{steps}; training seeds: {seeds}."


TABLES = {"fashion-class": "class", "fashion-random": "random"}


def main() -> None:
    """Print the tables that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(TABLES))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four .gz files")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for training, at most")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every training")
    parser.add_argument(
        "--bf16", action="store_true", help="train in bf16: a third less time where the processor has it"
    )
    parser.add_argument("--seeds", type=int, help="0, 1, ... up to so many")
    parser.add_argument("--recipes", help="these alone, parted by commas")
    parser.add_argument("--steps", type=int, help="of every repair; the recipes' own otherwise")
    parser.add_argument("--smoke", action="store_true", help="few steps and pictures; writes no document")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    parser.add_argument("--root", type=Path, default=Path("runs/fashion"), help="where pictures, models and runs lie")
    given = parser.parse_args()
    if unknown := set(given.tables) - set(TABLES):
        parser.error(f"{min(unknown)} is no table: choose {', '.join(TABLES)}")
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        if not (given.data / f"{part}-ubyte.gz").is_file():
            parser.error(
                f"--data {given.data} has no {part}-ubyte.gz: install Debian's dataset-fashion-mnist, or name its folder"
            )
    if not LEAST <= given.pictures <= PICTURES or given.epochs < 1:
        parser.error(f"--pictures goes from {LEAST} to {PICTURES}, and --epochs from 1 on: choose other numbers")
    if given.smoke:
        given.recipes, given.steps = given.recipes or "scissorhands,lra-npp", given.steps or 3
    count, epochs = (LEAST, 1) if given.smoke else (given.pictures, given.epochs)
    place = given.root / ("smoke" if given.smoke else f"{count}-{epochs}{'-bf16' if given.bf16 else ''}")
    options = Options(place, given.seeds, None, given.smoke)
    shelf = Shelf(options, given.data, count, epochs, given.bf16, given.recipes, given.steps)
    for name in given.tables or TABLES:
        text = table_of(shelf, TABLES[name])
        print(f"<!-- {name} -->\n\n{text}\n", flush=True)
        if given.write and not given.smoke:
            publish(name, text, DOCUMENT)


if __name__ == "__main__":
    main()
