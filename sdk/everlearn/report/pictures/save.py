"""A figure as a PNG file, and as a part of a page that takes on the page's colours and fonts."""

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from everlearn.report.pictures.style import COLOURS, INK, PAPER, RULE

THEMED = {
    INK: "currentColor",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    COLOURS[0].lower(): "var(--blue)",  # which is dim on a dark page, and lighter there
    COLOURS[5].lower(): "var(--sky)",
}
"""What the colours of a picture are called on a page."""


def as_png(figure: Figure) -> bytes:
    """The figure on a light background."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches=_cut(figure))
    return file.getvalue()


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``svg`` element of a page.

    Text stays text, in the page's fonts; what is `INK`, `RULE` and `PAPER` in the figure takes the page's
    ``color``, ``--rule`` and ``--paper``. The background is the page's.

    Args:
        figure: drawn.
        name: a name of its own among the page's pictures.
        alt: what it shows, for those who cannot see it.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", transparent=True, dpi=200, metadata={"Date": None}, bbox_inches=_cut(figure)
        )
    svg = file.getvalue()
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(r"<[^<>]+>", lambda tag: _themed(tag[0], used), body)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg class="plot" role="img" aria-label="{escape(alt)}" {view[0]}>{body}'


def _cut(figure: Figure) -> Bbox:
    """All of the width, so that text has one size in all pictures; no more height than there is in it."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    return Bbox([[0, box.y0 - 0.04], [figure.get_figwidth(), box.y1 + 0.04]])


def _themed(tag: str, used: set[str]) -> str:
    tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", tag)
    for colour, theirs in THEMED.items():
        tag = tag.replace(colour, theirs)
    return tag
