"""Copies of outputs where `to` wants them; a file that the pipeline did not write is never replaced unasked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invsolve.datasets.hdf5 import check_target, replace
from invsolve.errors import UserError
from invsolve.pipeline.files import read_json, write_json
from invsolve.pipeline.store import Store


def sha256_of(record: Mapping[str, Any]) -> str:
    """The hash of a finished job's output; empty where there is none."""
    return str((record.get("output") or {}).get("sha256", ""))


class Published:
    """What was put under names of the user's choice, as the work folder remembers it.

    Args:
        store: the work folder.
        overwrite: replace whatever is there.
    """

    def __init__(self, store: Store, overwrite: bool) -> None:
        self.store, self.overwrite = store, overwrite

    def check(self, copy: Path, sha256: str = "") -> None:
        """Refuse a name under which something lies that this pipeline did not put there, or that was changed since.

        Args:
            copy: the name.
            sha256: of what is to be put there: where that is what lies there, nothing is lost.

        Raises:
            UserError: says how to mend it.
        """
        if self.overwrite or not os.path.lexists(copy):
            return
        if copy.is_file() and self.store.hashes.of(copy) in {sha256, *self._ours(copy)}:
            return
        raise UserError(
            f"to = {copy}: exists, and is not what this pipeline wrote there; move it away, or give --overwrite to replace it"
        )

    def put(self, output: Path, copy: Path, sha256: str) -> None:
        """Put a copy where the user wants it, unless it is there already.

        Raises:
            UserError: something else is there, or it cannot be written.
        """
        if copy.is_file() and self.store.hashes.of(copy) == sha256:
            return
        self.check(copy)
        temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            check_target(copy, output)
            shutil.copyfile(output, temporary)
            # Noted first, beside what was there: a kill in between leaves one of the two, and both are ours.
            write_json(self._note(copy), {"path": str(copy), "sha256": [*self._ours(copy)[-1:], sha256]})
            replace(temporary, copy)
        except OSError as error:
            raise UserError(f"to = {copy}: cannot be written ({error.strerror}); check space and permissions") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _ours(self, copy: Path) -> list[str]:
        hashes = read_json(self._note(copy)).get("sha256")
        return [str(text) for text in hashes] if isinstance(hashes, list) else []

    def _note(self, copy: Path) -> Path:
        name = hashlib.sha256(str(copy.absolute()).encode(errors="surrogateescape")).hexdigest()[:20]
        return self.store.work / ".published" / f"{name}.json"
