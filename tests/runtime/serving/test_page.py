"""The page in a real browser, with a camera that is a file."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import sync_playwright

from everlearn_runtime import EdgeLearner

from .conftest import MakeServer, png

MakeImages = Callable[..., NDArray[np.uint8]]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


class Camera:
    """A file that Chromium takes for a camera, and reads anew whenever it is started."""

    def __init__(self, path: Path, make_images: MakeImages) -> None:
        self.path = path
        self._make = make_images

    def show(self, label: str) -> None:
        """Put a thing of a class in front of it."""
        frames = io.BytesIO()
        for one in self._make(label, 4, seed=9):
            wide = Image.fromarray(one).resize((480, 480), Image.Resampling.NEAREST)
            frame = Image.new("RGB", (640, 480))
            frame.paste(wide, (80, 0))
            frame.save(frames, "JPEG", quality=95)
        self.path.write_bytes(frames.getvalue())


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("camera") / "camera.mjpeg"


@pytest.fixture(autouse=True)
def camera(film: Path, make_images: MakeImages) -> Camera:
    made = Camera(film, make_images)
    made.show("mug")
    return made


@pytest.fixture(scope="module")
def browser(film: Path) -> Iterator[Any]:
    options = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    ]
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page; what goes wrong in it is listed as ``page.wrong``."""
    contexts: list[Any] = []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(permissions=["camera"], **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        found: list[str] = []
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("console", lambda said: found.extend([said.text] if said.type == "error" else []))
        page.wrong = found
        page.goto(url)
        page.wait_for_selector("#main:not([hidden])")
        return page

    yield opened
    for context in contexts:
        context.close()


def says(page: Any, label: str) -> None:
    """Wait until the device calls what it sees so."""
    page.locator("#label", has_text=label).wait_for()


def teach(page: Any, label: str) -> None:
    page.fill("#name", label)
    page.click("#burst")
    page.locator("#shots li").nth(4).wait_for()
    page.click("#learn")
    page.locator("#notice-text", has_text=f"Learned 5 of “{label}”").wait_for()


def test_two_things_are_taught_recognised_and_taken_back(
    serve: MakeServer, learner: EdgeLearner, camera: Camera, visit: Callable[..., Any]
) -> None:
    page = visit(serve(learner))
    assert page.inner_text("#summary") == "2 classes · version 0"

    for number, label in enumerate(("key", "cup"), start=1):
        camera.show(label)
        page.click("#camera")
        page.wait_for_selector("#answer:not([hidden])")
        assert page.inner_text("#label") in ("mug", "pen", "key")
        teach(page, label)
        says(page, label)
        assert page.inner_text("#share").endswith("%")
        assert page.inner_text("#summary") == f"{number + 2} classes · version {number}"
        page.click("#camera")
    assert learner.counts == {"mug": 4, "pen": 4, "key": 5, "cup": 5}

    camera.show("key")
    page.click("#camera")
    says(page, "key")

    page.click("#undo")  # cup goes
    page.locator("#summary", has_text="3 classes · version 3").wait_for()
    page.click("#undo")  # key goes
    page.locator("#summary", has_text="2 classes · version 4").wait_for()
    assert learner.counts == {"mug": 4, "pen": 4}
    page.locator("#label", has_text=re.compile("^(mug|pen)$")).wait_for()

    page.get_by_role("button", name="Go back to version 2").click()
    says(page, "key")
    assert learner.counts == {"mug": 4, "pen": 4, "key": 5, "cup": 5}
    page.get_by_role("button", name="Forget key").click()
    page.locator("#notice-text", has_text="Forgot “key”").wait_for()
    assert "key" not in learner.counts
    page.click("#notice-undo")
    says(page, "key")
    assert "key" in learner.counts
    assert page.wrong == []


def test_a_device_that_knows_nothing(
    serve: MakeServer, learner: EdgeLearner, camera: Camera, visit: Callable[..., Any]
) -> None:
    for label in ("mug", "pen"):
        learner.forget(label)
    camera.show("key")
    page = visit(serve(learner))
    page.click("#camera")
    assert "It knows nothing yet" in page.inner_text("#doubt")
    assert page.locator("#answer").is_hidden()
    teach(page, "key")
    says(page, "key")
    assert learner.counts == {"key": 5}
    page.click("#undo")
    page.locator("#doubt", has_text="It knows nothing yet").wait_for()
    assert page.locator("#answer").is_hidden()
    assert page.wrong == []


def test_what_is_unknown_is_called_so(
    serve: MakeServer,
    learner: EdgeLearner,
    camera: Camera,
    visit: Callable[..., Any],
    make_images: MakeImages,
) -> None:
    for seed in range(30):
        for label in ("mug", "pen"):
            learner.learn(make_images(label, 4, seed=seed + 1), [label] * 4)
    camera.show("something else")
    page = visit(serve(learner))
    page.click("#camera")
    says(page, "unknown")
    assert page.inner_text("#share") == ""
    assert page.locator("#if").is_visible()
    page.click("#camera")
    camera.show("mug")
    page.click("#camera")
    says(page, "mug")
    assert page.locator("#if").is_hidden()
    page.fill("#name", "pen")
    for _ in range(2):
        page.click("#shot")
    page.locator("#shots li").nth(1).wait_for()
    page.click("#learn")
    page.locator("#notice-text", has_text="Learned 2 of “pen”. But more like “mug”: shots 1, 2.").wait_for()
    assert page.wrong == []


def test_pictures_that_are_chosen(
    serve: MakeServer,
    learner: EdgeLearner,
    visit: Callable[..., Any],
    make_images: MakeImages,
    tmp_path: Path,
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, one in zip(paths, make_images("pen", 3, seed=4), strict=True):
        path.write_bytes(png(one))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page = visit(serve(learner))
    page.set_input_files("#files", [broken, *paths])
    says(page, "pen")
    page.locator("#shots li", has_text="pen").nth(2).wait_for()
    assert page.locator("#shots li").count() == 3  # the broken one is told
    assert "broken.png is no picture" in page.inner_text("#notice-text")
    page.get_by_role("button", name="Remove shot 2").click()
    page.fill("#name", "pen")
    assert page.inner_text("#learn") == "Learn 2 shots as “pen”"
    page.click("#learn")
    page.locator("#summary", has_text="version 1").wait_for()
    assert learner.counts["pen"] == 6
    assert page.wrong == []


def test_names_are_text_and_nothing_runs(
    serve: MakeServer, learner: EdgeLearner, visit: Callable[..., Any], make_images: MakeImages
) -> None:
    name = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"
    learner.learn(make_images("jar"), [name] * 4)
    page = visit(serve(learner))
    assert page.locator("#classes .what", has_text=name).count() == 1
    assert name in page.inner_text("#history")
    page.click("#camera")
    page.wait_for_selector("#answer:not([hidden])")
    assert page.locator("main img:not(#still), main script").count() == 0
    assert page.title() == "everlearn"
    assert page.wrong == []


def test_a_token_is_asked_for(serve: MakeServer, learner: EdgeLearner, visit: Callable[..., Any]) -> None:
    token = "a-token-of-some-length"
    url = serve(learner, token=token)
    page = visit(f"{url}/#token={token}")
    assert token not in page.url
    assert page.inner_text("#summary") == "2 classes · version 0"

    other = page.context.browser.new_context().new_page()
    other.goto(url)
    other.wait_for_selector("#login:not([hidden])")
    assert other.locator("#main").is_hidden()
    other.fill("#token", "a-wrong-token-of-some-length")
    other.press("#token", "Enter")
    other.locator("#notice-text", has_text="That token is wrong").wait_for()
    other.fill("#token", token)
    other.press("#token", "Enter")
    other.wait_for_selector("#main:not([hidden])")


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (390, "light"), (1200, "dark")])
def test_nothing_is_wider_than_the_screen(
    serve: MakeServer,
    learner: EdgeLearner,
    visit: Callable[..., Any],
    make_images: MakeImages,
    width: int,
    scheme: str,
) -> None:
    learner.learn(make_images("jar"), ["Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 2] * 4)
    page = visit(serve(learner), viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.click("#camera")
    page.wait_for_selector("#answer:not([hidden])")
    page.click("#shot")
    page.locator("#shots li").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    small = page.evaluate(
        "[...document.querySelectorAll('button, .button')].filter((one) => one.offsetParent)"
        ".map((one) => one.getBoundingClientRect()).filter(({height}) => height < 36).length"
    )
    assert small == 0  # fingers are no pointers
    assert page.wrong == []
