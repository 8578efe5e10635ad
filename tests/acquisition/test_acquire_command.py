"""The command `acquire`: scans that are replayed, live instruments over pipes and sockets, kills and bad answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import invsolve
from invsolve.datasets.hdf5 import write_scan
from tests.support.acquisition import SIGMA, Bench, Columns, bench, plugin
from tests.support.types import Cli

SHELL = Path(__file__).parents[2] / "examples" / "acquisition" / "instrument.sh"


@pytest.fixture(scope="module")
def case() -> Bench:
    return bench(Columns())


@pytest.fixture
def folder(tmp_path: Path, case: Bench) -> Path:
    plugin(tmp_path)
    write_rows(tmp_path / "rows.txt", case)
    return tmp_path


def write_rows(path: Path, case: Bench) -> None:
    rows = case.measure(list(range(case.operator.groups)))
    path.write_text("\n".join(", ".join(f"{v:.9g}" for v in row) for row in rows) + "\n")


def arguments(folder: Path, *more: str) -> list[str]:
    live = ["--operator", "columns", "--noise", f"gaussian:{SIGMA}", "--prior", "small-field"]
    known = ["--plugin", str(folder / "small.py"), "--budget", "4", "--initial", "6", "--particles", "4"]
    return ["acquire", "-o", str(folder / "image.h5"), *live, *known, *more]


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "invsolve", *arguments(folder, *more)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def answer(process: subprocess.Popen[bytes], **message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def expected(case: Bench) -> invsolve.Session:
    """The same, in one process and without a kill."""
    values = np.stack([[float(f"{v:.9g}") for v in row] for row in case.measure(list(range(12)))])
    session = invsolve.acquire(
        case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), budget=4, initial=[6], particles=4
    )
    session.run(lambda groups: values[list(groups)])
    return session


def test_a_recorded_scan_is_replayed(folder: Path, case: Bench, cli: Cli) -> None:
    with_images = invsolve.operator("inpainting", fraction=1.0, image_size=12)
    write_scan(folder / "scan.h5", case.y[None].float(), with_images, invsolve.Gaussian(SIGMA))
    options = ["--prior", "small-field", "--plugin", folder / "small.py", "--policy", "uniform", "--budget", "6"]
    code, out, err = cli("acquire", folder / "scan.h5", "-o", folder / "r.h5", *options, "--particles", "4", "--json")
    assert code == 0, err
    told = json.loads(out)
    # Each half of the rows, then of the columns, by turns: (0, 0), (6, 0), (0, 6), (6, 6), (3, 0), (9, 0).
    assert told["acquired"] == [0, 72, 6, 78, 36, 108]
    assert with_images.groups == told["groups"]
    with h5py.File(folder / "r.h5") as file:
        at = file["diagnostics/acquired_at"][0, 0]
        assert np.flatnonzero(at >= 0).tolist() == sorted(told["acquired"])
        assert file["samples"].shape == (1, 4, 1, 12, 12)
    again = ("acquire", folder / "scan.h5", "-o", folder / "r.h5", *options, "--particles", "4", "--json")
    before = (folder / "r.h5").read_bytes()
    code, out, err = cli(*again)
    assert code == 0, err
    assert json.loads(out) == told | {"finished_before": True}
    assert "nothing is left to do" in err
    assert (folder / "r.h5").read_bytes() == before
    # Another command, or another result under that name.
    code, _, err = cli(*again, "--seed", "5")
    assert (code, "other settings (seed)" in err) == (2, True)
    write_scan(folder / "other.h5", case.y[None].float() + 1, with_images, invsolve.Gaussian(SIGMA))
    code, _, err = cli("acquire", folder / "other.h5", *again[2:])
    assert (code, "other settings (source)" in err) == (2, True)
    assert cli("inspect", folder / "r.h5")[0] == 0
    assert cli("report", folder / "r.h5", "-o", folder / "r.html")[0] == 0


def test_an_instrument_that_is_not_python(folder: Path, case: Bench) -> None:
    asked, answered = folder / "asked", folder / "answered"
    os.mkfifo(asked)
    os.mkfifo(answered)
    shell = (
        f"sh {SHELL} {folder}/rows.txt < {asked} > {answered} & exec {sys.executable} -P -m invsolve "
        f"{' '.join(arguments(folder))} > {asked} < {answered}"
    )
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "image.h5") as file:
        assert np.flatnonzero(file["diagnostics/acquired_at"][0, 0] >= 0).tolist() == sorted(expected(case).acquired)


@pytest.mark.slow
def test_both_sides_killed_twice_and_nothing_is_lost(folder: Path, case: Bench) -> None:
    rows = [[float(v) for v in line.split(",")] for line in (folder / "rows.txt").read_text().splitlines()]
    asked: list[list[int]] = []
    for kill in ("before the answer", "after the answer", None):
        process = start(folder)
        for message in messages(process):
            if "measure" not in message:
                continue
            asked.append(message["measure"])
            if kill == "before the answer" and len(asked) == 2:
                break
            answer(process, groups=message["measure"], values=[rows[g] for g in message["measure"]])
            if kill == "after the answer" and len(asked) == 4:
                # It is told when the next is asked for.
                next(messages(process))
                break
        if kill:
            process.kill()
        _, err = process.communicate(timeout=60)
        assert kill or process.returncode == 0, err.decode()
    whole = expected(case)
    with h5py.File(folder / "image.h5") as file:
        assert file["diagnostics/acquired_at"][0, 0].tolist() == whole.order.tolist()
        image = file["samples"][0]
    assert np.array_equal(image, whole.reconstruction().samples[0].numpy())
    assert asked[1] == asked[2]


def test_answers_that_cannot_be_taken_are_refused_and_asked_for_again(folder: Path) -> None:
    process = start(folder)
    refused = []
    bad: list[Any] = [{"groups": [6]}, {"groups": [6], "values": [[1, 2]]}, {"groups": [6], "values": "x"}]
    for message in messages(process):
        if "refused" in message:
            refused.append(message["refused"])
        elif "measure" in message:
            assert message["measure"] == [6]
            answer(process, **bad[len(refused)])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "has no values" in refused[0]
    assert "has 12 entries" in refused[1]
    assert "no array" in refused[2]
    lines = err.decode().splitlines()
    assert all(line.startswith("invsolve: ") for line in lines)
    assert "3 answers in a row" in lines[-1]


@pytest.mark.parametrize("how", ["closes", "is silent", "says error", "floods"])
def test_an_instrument_that_goes_wrong_is_one_line(folder: Path, how: str) -> None:
    process = start(folder, *(("--timeout", "0.2") if how == "is silent" else ()))
    stream = messages(process)
    while "measure" not in next(stream):
        pass
    assert process.stdin is not None
    if how == "closes":
        process.stdin.close()
        process.stdin = None
    elif how == "says error":
        answer(process, error="the coil is unplugged")
    elif how == "floods":
        try:
            process.stdin.write(b"9" * 2_000_000 + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            process.stdin = None
    if how == "is silent":
        # With its input still open.
        process.wait(timeout=60)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    last = err.decode().splitlines()[-1]
    expected_ = {
        "closes": "closed",
        "is silent": "within 0.2 s",
        "says error": "coil is unplugged",
        "floods": "more than",
    }
    assert expected_[how] in last
    assert "0 groups are kept, run the same command to go on" in last
    assert not (folder / "image.h5").exists()


def test_a_local_socket(folder: Path, case: Bench, cli: Cli) -> None:
    rows = [[float(v) for v in line.split(",")] for line in (folder / "rows.txt").read_text().splitlines()]
    place = folder / "instrument"

    def instrument() -> None:
        while not place.exists():
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(place))
            with connection.makefile("rw") as stream:
                for line in stream:
                    if groups := json.loads(line).get("measure"):
                        stream.write(json.dumps({"values": [rows[g] for g in groups]}) + "\n")
                        stream.flush()

    thread = threading.Thread(target=instrument, daemon=True)
    thread.start()
    code, out, err = cli(*arguments(folder, "--socket", str(place), "--timeout", "60", "--json"))
    thread.join(10)
    assert code == 0, err
    assert json.loads(out)["acquired"] == expected(case).acquired
    assert not place.exists()


def test_what_is_missing_is_said(folder: Path, cli: Cli) -> None:
    base = ["acquire", "-o", folder / "r.h5", "--prior", "small-field", "--plugin", folder / "small.py"]
    for more, match in (
        ([], "--operator NAME"),
        (["--operator", "columns"], "--noise NAME:VALUE"),
        (["--operator", "columns", "--noise", "gaussian:1", "--initial", "a"], "--initial 'a'"),
        ([folder / "nothing.h5"], "nothing.h5"),
    ):
        code, _, err = cli(*base, *more)
        assert code == 2
        assert match in err
        assert len(err.splitlines()) == 1
