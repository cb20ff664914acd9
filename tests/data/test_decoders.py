"""Processes that decode: the same pixels for any number of them, and no kill that loses a picture or hangs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelyard.data import decoding
from modelyard.data.decoders import Decoders
from modelyard.data.decoding import Decoding
from modelyard.data.image_file import decode_image
from modelyard.spec.errors import DataError
from modelyard.spec.signature import ImageInput

RGB = ImageInput(height=9, width=7, color="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = ImageInput(height=8, width=8, color="grey", mean=(0.0,), std=(1.0,))
BROKEN, GONE = 70, 133


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """300 pictures, one of which is broken and one is not there; names that are no UTF-8 among them."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    found = []
    for number in range(300):
        name = f"{number}-{os.fsdecode(bytes([0xFF]))}ä.png" if number % 7 == 0 else f"{number}.png"
        if number == BROKEN:
            (folder / name).write_bytes(b"no picture")
        elif number != GONE:
            pixels = random.integers(0, 256, (6 + number % 9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        found.append(str(folder / name))
    return found


def expected(spec: ImageInput, files: list[str]) -> np.ndarray:
    """Decoded one by one, here."""
    pixels = np.zeros((len(files), *spec.shape), np.uint8)
    for place, file in enumerate(files):
        if file not in (files[BROKEN], files[GONE]):
            pixels[place] = decode_image(spec, Path(file).read_bytes())
    return pixels


@pytest.fixture
def two() -> Iterator[Decoders]:
    decoders = Decoders(RGB, 2)
    yield decoders
    decoders.close()


def check(spec: ImageInput, files: list[str], got: np.ndarray, unreadable: dict[int, str]) -> None:
    assert np.array_equal(got, expected(spec, files))
    assert list(unreadable) == [BROKEN, GONE]
    assert "not a readable image: none of PNG" in unreadable[BROKEN]
    assert unreadable[GONE] == "No such file or directory"


@pytest.mark.parametrize("spec", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_pixels_are_those_of_one_process(
    spec: ImageInput, count: int, files: list[str]
) -> None:
    decoders = Decoders(spec, count)
    try:
        check(spec, files, *decoders.result(decoders.begin(files)))
        empty, none = decoders.result(decoders.begin([]))
        assert empty.shape == (0, *spec.shape) and none == {}
    finally:
        decoders.close()


def test_slices_are_independent_and_may_be_dropped(two: Decoders, files: list[str]) -> None:
    first, dropped, last = (two.begin(files) for _ in range(3))
    two.drop(dropped)
    check(RGB, files, *two.result(last))
    check(RGB, files, *two.result(first))


def test_a_killed_process_is_replaced_and_nothing_is_lost(two: Decoders, files: list[str]) -> None:
    for _ in range(3):
        begun = two.begin(files)
        victim = two.processes[0]
        os.kill(victim, signal.SIGKILL)
        check(RGB, files, *two.result(begun))
        deadline = time.monotonic() + 30
        while victim in two.processes:  # the other one may do all the work for a while
            assert time.monotonic() < deadline
            check(RGB, files, *two.result(two.begin(files)))


def test_a_file_that_ends_every_process_is_an_error_and_no_hang(files: list[str]) -> None:
    decoders = Decoders(RGB, 1)
    over = threading.Event()

    def kill() -> None:
        """Each process that appears, at once."""
        seen: set[int] = set()
        while not over.is_set():
            for process in set(decoders.processes) - seen:
                os.kill(process, signal.SIGKILL)
                seen.add(process)
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(DataError, match=r"0-.*png: whoever decodes it ends \(signal 9\)"):
            decoders.result(decoders.begin(files))
        with pytest.raises(DataError):
            decoders.result(decoders.begin(files))
    finally:
        over.set()
        killer.join()
        decoders.close()


def test_closing_ends_the_processes_in_the_midst_of_work(files: list[str]) -> None:
    decoders = Decoders(RGB, 2)
    for _ in range(20):
        decoders.begin(files)
    processes = decoders.processes
    decoders.close()
    assert [alive(process) for process in processes] == [False, False]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_the_processes_end_with_a_parent_that_is_killed() -> None:
    program = (
        "import os, signal; from tests.data.test_decoders import Decoders, RGB; "
        "d = Decoders(RGB, 2); print(*d.processes, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    processes = [int(word) for word in done.stdout.split()]
    until = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    assert len(processes) == 2 and not any(map(alive, processes))


@pytest.mark.parametrize("after", [0.0, 0.01, 1000.0], ids=["processes", "both", "in-line"])
def test_slices_are_the_same_in_line_and_by_processes(
    after: float, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_IN_LINE_SECONDS", after)
    pictures = Decoding(RGB, files)
    whole = expected(RGB, files)
    # One behind the other; then back, across and again, so that what was begun early is of no use.
    cuts = [*((n, n + 40) for n in range(0, 280, 40)), (280, 300), (0, 300), (50, 140), (140, 141)]
    for start, stop in cuts:
        pixels, unreadable = pictures.pixels(start, stop)
        assert np.array_equal(pixels, whole[start:stop])
        assert list(unreadable) == [n - start for n in (BROKEN, GONE) if start <= n < stop]
        pixels[:] = 7  # the caller's own


def test_a_pipe_among_the_pictures_is_no_place_to_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    _, unreadable = Decoding(RGB, [str(tmp_path / "pipe.png")]).pixels(0, 1)
    assert unreadable == {0: "not a readable image: it is empty"}
