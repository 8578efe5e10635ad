"""Streaming: reading ahead, writing behind, bounded memory, errors from either thread, scans simulated in pieces."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve import api, engine, jobs
from invsolve.datasets import hdf5
from invsolve.engine import streaming
from invsolve.engine.options import Options
from invsolve.engine.streaming import ReadAhead, WriteBehind
from invsolve.jobs import simulated
from tests.support.types import Cli
from tests.support.volumes import ITEMS, PRIOR, plugin, request, scan

__all__ = ["plugin", "scan"]


class Spy:
    """Rows that note which were read."""

    def __init__(self, count: int, size: int = 1000) -> None:
        self.count, self.size = count, size
        self.read: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        self.read.append((start, stop))
        return torch.arange(start, stop, dtype=torch.float32)[:, None].expand(-1, self.size)


def test_rows_are_those_asked_for_whatever_the_limit() -> None:
    items = [0, 1, 2, 5, 6, 7, 8, 20]
    for limit in (1, 9000, 10**6):
        with ReadAhead(Spy(30), items, 2, limit) as ahead:
            for batch in ([0, 1, 2], [2, 5], [5, 6], [5], [6], [7, 8, 20]):
                rows = ahead.take(batch)
                assert [float(row[0]) for row in rows] == batch


def test_what_was_forgotten_or_not_announced_is_read_again() -> None:
    with ReadAhead(Spy(30), range(2, 20), 2, limit=9000) as ahead:
        for batch in ([6, 7], [2, 3], [0, 1], [25], [8, 9]):
            assert [float(row[0]) for row in ahead.take(batch)] == batch
    with ReadAhead(Spy(30), [], 2) as ahead:
        assert float(ahead.take([4])[0][0]) == 4


def test_nobody_waits_for_ever() -> None:
    """Every way in which items, first batch, batches and limit can fit or just not fit."""
    deadline = time.monotonic() + 300

    def expired() -> None:
        assert time.monotonic() < deadline

    for count in (1, 2, 7, 8):
        for first in (1, 3, 8):
            for limit in (1, *range(400 * count - 400, 400 * count + 1200, 400)):
                with ReadAhead(Spy(count, 100), range(count), first, limit) as ahead:
                    batch = 1 + (count + first + limit) % 5
                    for start in range(0, count, batch):
                        ahead.take(range(start, min(start + batch, count)), expired)


def test_what_is_held_in_advance_is_bounded() -> None:
    spy = Spy(100)
    with ReadAhead(spy, range(100), 2, limit=40_000) as ahead:
        for item in range(0, 100, 2):
            ahead.take([item, item + 1])
            time.sleep(0.002)
            # 4000 bytes a row: ten of them, and those in use.
            assert len(ahead._rows) <= 12


def test_a_small_file_is_read_once_and_before_the_first_batch() -> None:
    spy = Spy(10)
    with ReadAhead(spy, range(10), 2, limit=10**6) as ahead:
        ahead.take([0])
        assert sum(stop - start for start, stop in spy.read) == 10
        for item in range(10):
            ahead.take([item])
    assert sum(stop - start for start, stop in spy.read) == 10


def test_a_bad_row_at_the_end_is_found_while_the_first_batch_is_computed() -> None:
    computing = threading.Event()

    def read(start: int, stop: int) -> torch.Tensor:
        if stop > 95:
            computing.wait(120)
            raise invsolve.UserError("item 95 is bad")
        return torch.zeros(stop - start, 1000)

    with ReadAhead(read, range(100), 1, limit=20_000) as ahead:
        ahead.take([0])
        computing.set()
        ahead._thread.join()
        with pytest.raises(invsolve.UserError, match="item 95 is bad"):
            ahead.take([1])


def test_waiting_for_a_slow_file_can_be_stopped() -> None:
    release = threading.Event()

    def read(start: int, stop: int) -> torch.Tensor:
        release.wait(120)
        return torch.zeros(stop - start, 1)

    def poll() -> None:
        release.set()
        raise engine.Interrupted

    with ReadAhead(read, range(3), 1) as ahead, pytest.raises(engine.Interrupted):
        ahead.take([0], poll)


def test_writing_keeps_what_was_handed_over_before_an_exception() -> None:
    written: list[int] = []

    def slow(value: int) -> None:
        time.sleep(0.02)
        written.append(value)

    def fail_after(values: range) -> None:
        with WriteBehind(slow, 5) as writing:
            for value in values:
                writing.put(value)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after(range(5))
    assert written == [0, 1, 2, 3, 4]


def test_an_error_in_writing_surfaces_and_blocks_nobody() -> None:
    def full(value: int) -> None:
        raise invsolve.UserError("no space left")

    def write(count: int) -> None:
        with WriteBehind(full, 1) as writing:
            for value in range(count):
                writing.put(value)

    for count in (1, 100):
        with pytest.raises(invsolve.UserError, match="no space left"):
            write(count)


class Meeting:
    """The computing of one item waits until, meanwhile, a later one was read and an earlier one written."""

    ITEM = 5

    def __init__(self) -> None:
        self.computing, self.read, self.written = threading.Event(), threading.Event(), threading.Event()

    def compute(self, item: int) -> None:
        if item == self.ITEM:
            self.computing.set()
            assert self.read.wait(120), "reading waits for the computing"
            assert self.written.wait(120), "writing waits for the computing"

    def held_up(self, done: threading.Event) -> None:
        """Of a reader or writer: not before the computing has begun."""
        assert self.computing.wait(120), "the computing waits for reading or writing"
        done.set()


class MetRows:
    """Two dozen small images; those that do not fit beside the first are read no sooner than the meeting."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        start, stop, _ = rows.indices(ITEMS)
        if start > self.meeting.ITEM + 3:
            self.meeting.held_up(self.meeting.read)
        return torch.zeros(stop - start, 1, 16, 16)


class MetSink(api.Memory):
    """A sink that writes the item before the meeting's no sooner than the meeting."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__(ITEMS)
        self.meeting = meeting

    def write(self, item: int, arrays: Mapping[str, torch.Tensor], facts: Mapping[str, float]) -> None:
        if item == self.meeting.ITEM - 1:
            self.meeting.held_up(self.meeting.written)
        super().write(item, arrays, facts)


def test_reading_and_writing_overlap_with_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As long as a volume that does not fit: eight rows are held, four are read at once.
    monkeypatch.setattr(streaming, "AHEAD", 8 * 1024)
    # No looking through what is still to come: that too would read late rows, before the meeting and on the same thread.
    monkeypatch.setattr(streaming, "_IDLE", 1e9)
    meeting = Meeting()
    measurement = invsolve.Measurement(MetRows(meeting), invsolve.operator("blur", sigma=1.0), invsolve.Gaussian(1.0))
    run = api.plan(measurement, None, invsolve.strategy("linear"), Options(batch_size=1))
    run.on_batch = lambda chains: meeting.compute(chains[0][0])
    sink = MetSink(meeting)
    run.execute(sink)
    assert meeting.read.is_set()
    assert meeting.written.is_set()


def test_a_full_disk_is_one_line_and_keeps_what_was_written(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "recon.h5", h5py.File.flush
    thread: list[str] = []

    def full(self: h5py.File) -> None:
        if "mean" in self and self["done"][:].sum() >= 4:
            thread.append(threading.current_thread().name)
            raise OSError(28, "No space left on device")
        real(self)

    monkeypatch.setattr(h5py.File, "flush", full)
    with pytest.raises(invsolve.UserError, match=r"writing item \d+ failed .*No space left.*are kept") as caught:
        jobs.reconstruct_file(request(scan, out))
    assert "\n" not in str(caught.value)
    assert thread[0] == "invsolve-write"
    assert len(hdf5.read_result(hdf5.partial_path(out)).items) >= 3


def test_nan_far_into_a_large_file_is_refused(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(scan, "r+") as file:
        file["y"][ITEMS - 1, 0, 2, 2] = np.nan
    with pytest.raises(invsolve.UserError, match=f"1 NaN or infinite values in item {ITEMS - 1}"):
        jobs.reconstruct_file(request(scan, tmp_path / "recon.h5"))
    assert not list(tmp_path.glob("recon.h5*")), "small enough to be looked through before anything is done"


PEAK = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from invsolve import jobs, registry
from invsolve.engine import streaming
from invsolve.engine.options import Options
registry.load_file(sys.argv[2])
# So that small volumes show what large ones would.
streaming.AHEAD = 2**22
for count in (16, 64, 256):
    scan = Path(sys.argv[1], f"scan{count}.h5")
    options = Options(batch_size=2)
    request = jobs.Request(scan, scan.with_name("out.h5"), "wide", "dps-fitted", {"steps": 1}, options, overwrite=True)
    jobs.reconstruct_file(request)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_items(tmp_path: Path) -> None:
    plugin = tmp_path / "wide.py"
    plugin.write_text(PRIOR.replace("size=16", "size=128").replace('"small"', '"wide"'))
    for count in (16, 64, 256):
        with h5py.File(tmp_path / f"scan{count}.h5", "w") as file:
            file["y"] = np.full((count, 1, 128, 128), 0.1, "f4")
            file.create_group("operator").attrs.update({"name": "inpainting", "fraction": 0.5, "image_size": 128})
            file.create_group("noise").attrs.update({"name": "gaussian", "sigma": 0.05})
    command = [sys.executable, "-P", "-c", PEAK, str(tmp_path), str(plugin)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    _, some, many = (int(line) / 1024 for line in done.stdout.split())
    # 192 items more are 12.6 MB of measurements and 50 MB of results.
    assert many - some < 8


def test_a_scan_simulated_in_pieces_is_the_same(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "truth.h5") as file:
        truth = torch.from_numpy(file["x"][:])
    wanted = invsolve.simulate(truth, invsolve.operator("blur", sigma=1.0), invsolve.Gaussian(0.05), seed=0)
    monkeypatch.setattr(simulated, "AHEAD", 5 * truth[0].nbytes)
    read: list[slice] = []
    real = hdf5.read_images

    class Noting:
        def __init__(self, path: Path) -> None:
            self.rows = real(path)
            self.shape = self.rows.shape

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, rows: slice, /) -> torch.Tensor:
            read.append(rows)
            return self.rows[rows]

    monkeypatch.setattr(hdf5, "read_images", Noting)
    jobs.simulate_file(
        tmp_path / "truth.h5", tmp_path / "again.h5", "blur", {"sigma": 1.0}, "gaussian:0.05", seed=0, overwrite=False
    )
    with h5py.File(tmp_path / "again.h5") as file:
        np.testing.assert_array_equal(file["y"][:], wanted)
        np.testing.assert_array_equal(file["truth"][:], truth)
    assert max(rows.stop - rows.start for rows in read) == 5
    # Once through, and the first rows again for shapes and types.
    assert sum(rows.stop - rows.start for rows in read) <= ITEMS + 7


def test_a_bad_image_is_named_and_leaves_no_scan(scan: Path, tmp_path: Path, cli: Cli) -> None:
    with h5py.File(tmp_path / "truth.h5", "r+") as file:
        file["x"][17, 0, 3, 3] = np.inf
    code, _, err = cli(
        "simulate", tmp_path / "truth.h5", "-o", tmp_path / "bad.h5", "--operator", "blur", "--set", "sigma=1"
    )
    assert code == 2
    assert "NaN or infinite values in item 17" in err
    assert not list(tmp_path.glob("*bad*"))
