"""Instruments, session files and commands that mean harm, or are merely wrong: one line, nothing lost, nothing mixed."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import invsolve
from invsolve.acquisition.lines import Channel, longest_line, serve
from invsolve.datasets.hdf5 import write_scan
from invsolve.errors import UserError
from tests.acquisition.test_acquire_command import arguments
from tests.support.acquisition import SIDE, SIGMA, Bench, Columns, bench, plugin
from tests.support.types import Cli

ROW = [0.1] * SIDE


@pytest.fixture(scope="module")
def case() -> Bench:
    return bench(Columns())


def begin(case: Bench, file: Path | None = None, **settings: Any) -> invsolve.Session:
    given: dict[str, Any] = {"policy": "uniform", "budget": 4, "particles": 2, "file": file, **settings}
    return invsolve.acquire(case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), **given)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ({"groups": None, "values": [ROW]}, "no list of groups"),
        ({"groups": [], "values": []}, "at least one"),
        ({"groups": True, "values": [ROW]}, "no whole number"),
        ({"groups": [True], "values": [ROW]}, "no whole number"),
        ({"groups": [0.0], "values": [ROW]}, "no whole number"),
        ({"values": None}, "no array of numbers"),
        ({"values": 5}, "no array of numbers"),
        ({"values": [["1"] * SIDE]}, "no array of numbers"),
        ({"values": [[True] * SIDE]}, "no array of numbers"),
        ({"values": [[None] * SIDE]}, "NaN"),
        ({"real": [ROW], "imag": ROW}, r"real and imag: have shapes \(1, 12\) and \(12,\)"),
        ({"real": [ROW], "imag": 0}, "imag: no array of numbers"),
    ],
)
def test_an_answer_that_is_no_measurement_is_refused(case: Bench, answer: dict[str, Any], match: str) -> None:
    session = begin(case)
    left = [json.dumps(answer).encode() + b"\n"] * 10
    channel = Channel(lambda size: left.pop() if left else b"", lambda line: None, 60, longest_line(session))
    with pytest.raises(UserError, match=f"3 answers in a row.*{match}"):
        serve(session, channel)
    assert session.acquired == []


def test_lines_that_nobody_reads_take_no_memory(case: Bench) -> None:
    sent = [0]

    def flood(size: int) -> bytes:
        sent[0] += 1
        return b"{}\n" if sent[0] < 10_000 else b""

    channel = Channel(flood, lambda line: None, 60, 100)
    time.sleep(0.05)
    assert sent[0] < 100
    assert channel.answer() == {}


def _put(file: h5py.File, name: str, value: Any, **more: Any) -> None:
    del file[name]
    file.create_dataset(name, data=value, **more)


@pytest.mark.parametrize("what", ["huge", "rounds", "twice", "complex", "nan", "acquired and asked for", "a group"])
def test_a_session_file_that_does_not_fit_is_refused_unread(case: Bench, tmp_path: Path, what: str) -> None:
    path = tmp_path / "session.h5"
    session = begin(case, path)
    for _ in range(2):
        session.tell(session.ask(), case.y)
    session.ask()
    with h5py.File(path, "a") as file:
        y, at = file["y"][()], file["acquired_at"][()]
        match what:
            case "huge":
                del file["y"]
                file.create_dataset("y", (2**34,), "f4", chunks=(2**20,), compression="gzip")
            case "rounds":
                _put(file, "acquired_at", np.where(at == 1, 2**31 - 1, at))
            case "twice":
                _put(file, "sequence", [0, 0])
            case "complex":
                _put(file, "y", y + 1j)
            case "nan":
                _put(file, "y", y * np.nan)
            case "acquired and asked for":
                _put(file, "pending", [0])
            case "a group":
                del file["sequence"]
                file.create_group("sequence")
    with pytest.raises(UserError, match=r"session\.h5"):
        begin(case, path)


def test_two_processes_do_not_go_on_with_one_session(case: Bench, tmp_path: Path) -> None:
    first = begin(case, tmp_path / "s.h5")
    first.tell([3], case.y)
    second = begin(case, tmp_path / "s.h5")
    second.tell([5], case.y)
    with pytest.raises(UserError, match="another process"):
        first.tell([7], case.y)
    assert begin(case, tmp_path / "s.h5").acquired == [3, 5]


def test_a_session_of_another_specimen_is_refused(case: Bench, tmp_path: Path) -> None:
    begin(case, tmp_path / "s.h5", source="tooth").tell([3], case.y)
    assert begin(case, tmp_path / "s.h5", source="tooth").acquired == [3]
    with pytest.raises(UserError, match=r"other settings \(source\)"):
        begin(case, tmp_path / "s.h5", source="bone")


def test_a_replayed_session_is_not_mixed_with_another_item_and_says_that_it_is_finished(
    case: Bench, tmp_path: Path, cli: Cli
) -> None:
    plugin(tmp_path)
    whole = invsolve.operator("inpainting", fraction=1.0, image_size=SIDE)
    write_scan(tmp_path / "scan.h5", case.y[None].float().repeat(2, 1, 1, 1), whole, invsolve.Gaussian(SIGMA))
    known = ["--prior", "small-field", "--plugin", tmp_path / "small.py", "--policy", "uniform", "--particles", "2"]
    command = ["acquire", tmp_path / "scan.h5", "-o", tmp_path / "r.h5", *known, "--budget", "2"]
    assert cli(*command)[0] == 0
    before = (tmp_path / "r.h5").read_bytes()
    code, _, err = cli(*command)
    assert code == 0, err
    assert "was finished by the same command before" in err
    assert (tmp_path / "r.h5").read_bytes() == before
    code, _, err = cli(*command, "--item", "1")
    assert code == 2
    assert "other settings (source)" in err
    # The result was lost, the session was not: nothing of another item gets into it.
    (tmp_path / "r.h5").unlink()
    assert cli(*command, "--item", "1")[0] == 2
    assert cli(*command)[0] == 0


@pytest.mark.parametrize("timeout", ["-1", "0", "nan", "inf", "1e300"])
def test_a_timeout_that_is_no_time_is_one_line(tmp_path: Path, cli: Cli, timeout: str) -> None:
    plugin(tmp_path)
    for more in ((), ("--socket", str(tmp_path / "s"))):
        code, _, err = cli(*arguments(tmp_path, *more, "--timeout", timeout))
        assert code == 2
        assert "timeout is" in err
        assert len(err.splitlines()) == 1


def test_a_socket_that_a_kill_left_is_in_nobodys_way(tmp_path: Path, cli: Cli) -> None:
    plugin(tmp_path)
    place = tmp_path / "s"
    command = arguments(tmp_path, "--socket", str(place), "--timeout", "0.05")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
        left.listen(1)
        # Somebody listens.
        assert "exists" in cli(*command)[2]
    assert place.exists()
    assert "no instrument connected" in cli(*command)[2]
    place.write_text("not a socket")
    assert "exists" in cli(*command)[2]
    assert place.read_text() == "not a socket"
