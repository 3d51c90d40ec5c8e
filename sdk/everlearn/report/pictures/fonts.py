"""Which text matplotlib can draw: by its own font, and one for Chinese, Japanese and Korean where it is."""

from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

BASE = "DejaVu Sans"  # comes with matplotlib

EAST_ASIAN = (
    *(f"Noto Sans CJK {place}" for place in ("JP", "SC", "TC", "KR")),
    *(f"Source Han Sans {place}" for place in ("JP", "SC", "TC", "KR")),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "SimHei", "Yu Gothic"),
    *("MS Gothic", "Malgun Gothic", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic"),
    *("NanumGothic", "UnDotum", "Unifont"),
)
"""Families to look for, the first that is installed is taken; those with all three scripts come first."""


FILES = (
    "notosanscjk",
    "sourcehansans",
    "wqy",
    "droidsansfallback",
    "ipag",
    "takao",
    "nanumgothic",
    "unifont",
)
"""How the files of such fonts begin."""


@cache
def families() -> tuple[str, ...]:
    """The fonts of pictures, in the order in which they are asked for a character."""
    if not _east_asian():  # matplotlib's list is as old as its cache: it may have been installed since
        for file in font_manager.findSystemFonts():
            if Path(file).name.lower().startswith(FILES):
                font_manager.fontManager.addfont(file)
    return (BASE, *_east_asian()[:2])


def _east_asian() -> list[str]:
    there = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in EAST_ASIAN if name in there]


def drawable(text: str) -> bool:
    """Whether the fonts of pictures have every character of a text."""
    missing = {ord(character) for character in text}
    for name in families():
        missing -= _characters(name)
    return not missing


def plain(text: str) -> str:
    """The text as matplotlib draws it as it is: no formula, and a question mark for what no font has.

    A dollar sign would begin a formula.
    """
    if not drawable(text):
        text = "".join(character if drawable(character) else "?" for character in text)
    return text.replace("$", r"\$")


@cache
def _characters(family: str) -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont(family)).get_charmap())
