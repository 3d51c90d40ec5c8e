"""A page as a browser would see it, and a benchmark of names that would do harm as markup."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from everlearn import NTKCL, Frozen, Images, Method
from everlearn.evaluation.bench import bench

from ..conftest import coloured, vit

EVIL = '<script>alert("$x^$")</script>'
BOLD = "<b>bold $_"


class Ceiling(Frozen):
    """Learns all tasks at once."""

    at_once = True


MAKERS: dict[str, Callable[[], Method]] = {BOLD: Frozen, "NTK-CL": NTKCL, "ceiling": Ceiling}


class Page(HTMLParser):
    """What a browser would see: tags, their attributes, text, and where things are fetched from."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    @property
    def tags(self) -> list[str]:
        """Of all elements, in their order."""
        return [tag for tag, _ in self.elements]

    @property
    def sources(self) -> list[str]:
        """What elements refer to."""
        names = ("src", "href", "xlink:href", "action", "data", "srcset")
        return [one[name] for _, one in self.elements for name in names if name in one]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def named(names: list[str], count: int, seed: int = 0) -> Images:
    """Images of classes with these names."""
    plain = coloured("abcdefgh"[: len(names)], count, seed)
    return Images([names["abcdefgh".index(label)] for label in plain.labels], lambda index: plain[index][0])


def mixed(images: Images, of: str, into: str, count: int) -> Images:
    """The same images, of which the first of one class are said to be of another."""
    places = [index for index, name in enumerate(images.labels) if name == of][:count]
    return Images(
        [into if index in places else name for index, name in enumerate(images.labels)],
        lambda index: images[index][0],
    )


def make_bench(folder: Path) -> Path:
    """Three methods and two seeds, with a class and a method of ugly names."""
    names = [EVIL, "b & c", "$d$", "e" * 40, "f", "g"]
    given: dict[str, Any] = {"epochs": 1, "batch_size": 8, "lr": 0.05, "device": "cpu"}
    bench(
        named(names, 4),
        mixed(named(names, 3, seed=1), "f", "g", 1),
        folder,
        classes_per_task=2,
        methods=MAKERS,
        seeds=[0, 1],
        heads=["lda"],
        backbone=vit(),
        **given,
    )
    return folder
