"""The work folder: one folder per job, found by the job's key, complete once its step.json is there."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from invsolve.errors import UserError
from invsolve.pipeline.files import Hashes, read_json, write_json

#: How many digits of a key are in a folder's name; the whole key is in its record.
_SHORT = 12
_NAME_LIMIT = 120
_RECORD = "step.json"
#: Where a step writes before its output gets its place.
_UNFINISHED = "unfinished"
#: In each job's folder, with the digits of its key: only what has it is ever pruned.
_MARK = ".invsolve-job"


class Store:
    """The outputs of jobs, by key.

    Args:
        work: the folder; made when something is written.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.hashes = Hashes(work / ".hashes")

    def folder(self, key: str, title: str) -> Path:
        """The folder of a key: the one that is there, else a new name made of the title and the key."""
        there = sorted(self.work.glob(f"*-{key[:_SHORT]}"))
        if there:
            return there[0]
        readable = re.sub(r"[^A-Za-z0-9.,=+_-]+", "_", title)[:_NAME_LIMIT]
        return self.work / f"{readable}-{key[:_SHORT]}"

    def record(self, folder: Path, key: str, output: str) -> dict[str, Any]:
        """What is known of a finished job; empty when it is not finished, or its output is gone or was changed."""
        record = read_json(folder / _RECORD)
        if record.get("key") != key:
            return {}
        path = folder / output
        if output and not (path.is_file() and self.hashes.of(path) == (record.get("output") or {}).get("sha256")):
            return {}
        return record

    def damaged(self, folder: Path, key: str) -> bool:
        """Whether the job was finished once, but its output is no longer what it was."""
        return read_json(folder / _RECORD).get("key") == key

    def begun(self, folder: Path, output: str) -> bool:
        """Whether an interrupted run left something to go on from."""
        return any((folder / f"{output}{end}").exists() for end in (".partial.h5", ".parts", ".partial.state"))

    def last(self, name: str, branch: str) -> dict[str, Any]:
        """The newest record of a step and branch, whatever its key."""
        records = [self._records[folder] for folder in self._scan() if self._is(folder, name, branch)]
        return max(records, key=lambda record: record.get("finished", 0.0), default={})

    def _is(self, folder: Path, name: str, branch: str) -> bool:
        return (self._records[folder].get("step"), self._records[folder].get("branch")) == (name, branch)

    _records: dict[Path, dict[str, Any]]

    def _scan(self) -> list[Path]:
        if not hasattr(self, "_records"):
            there = sorted(self.work.iterdir()) if self.work.is_dir() else []
            records = {folder: read_json(folder / _RECORD) for folder in there if not folder.name.startswith(".")}
            self._records = {folder: record for folder, record in records.items() if record}
        return list(self._records)

    def stage(self, folder: Path, output: str, resumes: bool) -> Path:
        """Where a job is to write its output; clears what a killed run left there, unless the step resumes from it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _MARK).write_text(f"{folder.name[-_SHORT:]}\n", encoding="ascii")
            if resumes:
                return folder / output
            shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
            (folder / _UNFINISHED).mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another work folder") from None
        return folder / _UNFINISHED / (output or "none")

    def finish(self, folder: Path, output: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Give the output its place, and mark the job as done; returns the whole record."""
        staged, path = folder / _UNFINISHED / output, folder / output
        if output and staged.is_file():
            staged.replace(path)
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
        facts = None
        if output:
            facts = {"name": output, "bytes": path.stat().st_size, "sha256": self.hashes.of(path)}
        whole = {**record, "output": facts, "finished": time.time()}
        write_json(folder / _RECORD, whole)
        return whole

    def forget(self, folder: Path) -> None:
        """Remove a job's record and files, so that it runs from the beginning."""
        if folder.is_dir():
            # The record first: a kill in between leaves a job that is not done.
            (folder / _RECORD).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep other processes from running the same job; the lock of a killed process is free at once.

        Args:
            key: of the job.
            waiting: called now and then while another process has it; may raise.
        """
        lock = filelock.FileLock(self._lock_file(key))
        while True:
            try:
                lock.acquire(timeout=0.5)
                break
            except filelock.Timeout:
                waiting()
        try:
            yield
        finally:
            lock.release()

    def _lock_file(self, key: str) -> Path:
        folder = self.work / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another work folder") from None
        return folder / key[:_SHORT]

    def unused(self, keys: Collection[str]) -> list[Path]:
        """Folders of jobs with none of these keys; a folder that the store did not make is no job's."""
        short = {key[:_SHORT] for key in keys}
        there = sorted(self.work.iterdir()) if self.work.is_dir() else []
        named = [p for p in there if re.search(rf"-[0-9a-f]{{{_SHORT}}}$", p.name) and _is_ours(p)]
        return [folder for folder in named if folder.name[-_SHORT:] not in short]

    def prune(self, keys: Collection[str]) -> list[Path]:
        """Remove the folders of jobs with none of these keys, but those that another process is at."""
        removed = []
        for folder in self.unused(keys):
            lock = filelock.FileLock(self._lock_file(folder.name[-_SHORT:]))
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            try:
                self.forget(folder)
                removed.append(folder)
            finally:
                lock.release()
        return removed


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink():
        return False
    try:
        return (folder / _MARK).read_text(encoding="ascii").strip() == folder.name[-_SHORT:]
    except (OSError, ValueError):
        return False
