"""What a camera sees, named frame by frame, and learned when a key is pressed.

python examples/camera.py bundle/ --state device.db --teach m=mug p=pen

Keys of `--teach` learn the frame that is shown, u takes the last lesson back, q ends. Where no camera is,
`--source` takes a video file or a folder of images. With `--no-window` labels are printed, and a folder needs
no OpenCV.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from everlearn_runtime import EdgeLearner
from everlearn_runtime.picking import files_in

NEEDS_OPENCV = (
    "camera.py needs OpenCV: pip install opencv-python; with --no-window a folder of images needs none"
)
NO_DISPLAY = "camera.py has no display to show frames on: add --no-window, which prints what it sees"
LESSON = 8  # frames learned in one call with --learn


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed(argv)
    if options.window and not options.learn and not has_display():
        print(NO_DISPLAY, file=sys.stderr)
        return 2
    try:
        with EdgeLearner.open(options.bundle, state=options.state, durable=True) as edge:
            if options.learn:
                learn(edge, options)
            else:
                watch(edge, options)
    except (ValueError, OSError, ImportError) as error:
        print(f"camera.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def watch(edge: EdgeLearner, options: argparse.Namespace) -> None:
    """Name every frame, and learn those at which a key says so."""
    said = ""
    for frame in frames(options.source, window=options.window):
        found = edge.predict(frame, channels=order(frame))
        label, share = found.top(1)[0][0]
        text = f"{label} {share:.0%}" if found.known[0] else "unknown"
        if not options.window:
            if label != said:
                print(text, flush=True)
            said = label
            continue
        key = shown(frame, text)
        if key == "q":
            return
        if key == "u":
            take_back(edge)
        elif key in options.teach:
            learned = edge.learn(frame, [options.teach[key]], channels=order(frame))
            print(f"version {learned.number}: learned {options.teach[key]!r}", flush=True)


def take_back(edge: EdgeLearner) -> None:
    """Undo the last lesson; where there is none, say so and go on."""
    try:
        print(f"back to version {edge.undo().to}", flush=True)
    except ValueError as error:
        print(error, flush=True)


def learn(edge: EdgeLearner, options: argparse.Namespace) -> None:
    """Learn every frame as one class, some in a call: cheaper than one by one."""
    part: list[Any] = []
    for frame in frames(options.source, window=False):
        part.append(frame)
        if len(part) == LESSON:
            edge.learn(part, [options.learn] * len(part), channels=order(part[0]))
            part = []
    if part:
        edge.learn(part, [options.learn] * len(part), channels=order(part[0]))
    print(f"{edge.counts.get(options.learn, 0)} samples of {options.learn!r}", flush=True)


def frames(source: str, *, window: bool) -> Iterator[Any]:
    """Frames of a camera (its number), a video file or a folder: arrays (H, W, 3), blue first, or paths."""
    if Path(source).is_dir():
        for file in files_in([source])[0]:
            frame = opencv().imread(file.path) if window else file.path
            if frame is None:
                raise ValueError(f"{file.path}: OpenCV cannot read it")
            yield frame
        return
    camera = opencv().VideoCapture(int(source) if source.isdecimal() else source)
    try:
        there, frame = camera.read()
        if not there:
            raise ValueError(
                f"no frame comes from {source!r}; give a camera's number, a video file or a folder"
            )
        while there:
            yield frame
            there, frame = camera.read()
    finally:
        camera.release()


def has_display() -> bool:
    """Whether a window can be shown; without a display OpenCV ends the whole process."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def shown(frame: Any, text: str) -> str:
    """Show a frame, and give the key that was pressed."""
    cv2 = opencv()
    frame = frame.copy()
    cv2.putText(frame, text, (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 255, 0), 2)
    cv2.imshow("everlearn: q ends", frame)
    key: int = cv2.waitKey(1)
    return chr(key & 0xFF) if key >= 0 else ""


def order(frame: Any) -> str:
    """OpenCV's frames have blue first; a file says its own order."""
    return "rgb" if isinstance(frame, str) else "bgr"


def opencv() -> Any:
    """OpenCV, or one line that says how to get it."""
    try:
        import cv2
    except ImportError:
        raise ImportError(NEEDS_OPENCV) from None
    return cv2


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="what everlearn export wrote")
    parser.add_argument("--state", metavar="FILE", help="where what is learned is kept")
    parser.add_argument(
        "--source", default="0", help="a camera's number, a video file or a folder; default 0"
    )
    parser.add_argument("--teach", nargs="+", default=[], metavar="KEY=CLASS", help="keys that learn a frame")
    parser.add_argument("--learn", metavar="CLASS", help="learn all frames of the source as this class")
    parser.add_argument("--no-window", dest="window", action="store_false", help="print labels that change")
    options = parser.parse_args(argv)
    pairs = [text.partition("=") for text in options.teach]
    for key, _, label in pairs:
        if len(key) != 1 or key in "qu" or not label:
            parser.error(f"--teach takes KEY=CLASS with one key other than q and u, not {key}={label}")
    options.teach = {key: label for key, _, label in pairs}
    return options


if __name__ == "__main__":
    sys.exit(main())
