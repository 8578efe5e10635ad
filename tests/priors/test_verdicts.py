"""The self-test of a foreign checkpoint: kept by the hash of what was tested, and left out when asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import invsolve
from invsolve.api import verdicts
from invsolve.networks import selftest
from tests.support.types import Cli

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    from tests.priors.test_formats_diffusers import folder

    return folder(tmp_path / "prior", diffusers.DDPMScheduler())


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each self-test that runs."""
    runs: list[object] = []
    plain = selftest.self_test

    def counted(prior: Any, *given: Any, **more: Any) -> selftest.SelfTest:
        runs.append(prior)
        return plain(prior, *given, **more)

    monkeypatch.setattr(selftest, "self_test", counted)
    return runs


@pytest.mark.slow
def test_a_checkpoint_is_tested_once(checkpoint: Path, tested: list[object]) -> None:
    texts = []
    for _ in range(2):
        with pytest.warns(selftest.PriorWarning) as told:
            invsolve.load_prior(checkpoint)
        texts.append(str(told[0].message))
    # What it found is said again, without another test.
    assert len(tested) == 1
    assert texts[0] == texts[1]
    # Another reading of the same weights is tested, and what is kept and damaged is no verdict.
    for file in verdicts.folder().iterdir():
        file.write_text("[" * 100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", selftest.PriorWarning)
        invsolve.load_prior(checkpoint, parametrisation="v", schedule="cosine")
        assert len(tested) == 2
        invsolve.load_prior(checkpoint)
    assert len(tested) == 3


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_harm(
    checkpoint: Path, tested: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path / "file" / "below")
    for count in (1, 2):
        with pytest.warns(selftest.PriorWarning):
            invsolve.load_prior(checkpoint)
        assert len(tested) == count


@pytest.mark.slow
def test_the_command_leaves_it_out(checkpoint: Path, tested: list[object], tmp_path: Path, cli: Cli) -> None:
    assert cli("prior", "show", checkpoint, "--no-self-test")[0] == 0
    more = ("--count", 1, "--size", 16, "--steps", 2)
    assert cli("sample", checkpoint, "-o", tmp_path / "s.h5", *more, "--no-self-test")[0] == 0
    assert tested == []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = cli("prior", "show", checkpoint)
    assert code == 0
    assert "invsolve: warning: " in err
    assert len(tested) == 1


@pytest.mark.slow
def test_each_call_of_the_network_is_told(checkpoint: Path) -> None:
    calls: list[None] = []
    prior: Any = invsolve.load_prior(checkpoint, self_test=False)
    plain = prior.net.forward

    def forward(*given: Any, **more: Any) -> Any:
        calls.append(None)
        return plain(*given, **more)

    prior.net.forward = forward
    seen: list[None] = []
    torch.manual_seed(0)
    selftest.self_test(prior, told=lambda: seen.append(None))
    assert 0 < len(seen) <= len(calls) + 1
