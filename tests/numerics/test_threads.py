"""Shares of work in threads of their own: order, settings, errors; and projections that are the same with any number."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

import invsolve
from invsolve.numerics.threads import apart
from invsolve.operators.ct.projectors import folded


@pytest.fixture
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_with_one_thread_shares_run_here() -> None:
    assert torch.get_num_threads() == 1
    assert apart([threading.get_ident, threading.get_ident]) == [threading.get_ident()] * 2


@pytest.mark.usefixtures("two")
def test_shares_run_at_once_in_order_with_one_thread_each() -> None:
    # Neither gets past the barrier alone.
    meet = threading.Barrier(2, timeout=60)

    def share(k: int) -> tuple[int, int, bool, bool]:
        meet.wait()
        return k, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert apart([partial(share, 0), partial(share, 1)]) == [(0, 1, False, False), (1, 1, False, False)]
    with torch.inference_mode():
        assert [mode for *_, mode in apart([partial(share, 0), partial(share, 1)])] == [True, True]
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 2


@pytest.mark.usefixtures("two")
def test_an_error_in_a_share_is_the_callers() -> None:
    def wrong() -> None:
        raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        apart([wrong])
    assert apart([lambda: 4]) == [4]


def _in_child() -> None:
    assert apart([lambda: 1, lambda: 2]) == [1, 2]


@pytest.mark.usefixtures("two")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    apart([lambda: 1])
    child = multiprocessing.get_context("fork").Process(target=_in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize(
    "settings", [{"angles": 12}, {"angles": [3.0, 50.0, 99.0], "centre": 17.2}, {"projector": "fourier"}]
)
@pytest.mark.parametrize("count", [1, 5])
def test_projections_do_not_depend_on_threads(
    settings: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded, "_FEW", 0)
    monkeypatch.setattr(folded, "_MANY", 100)
    operator: Any = invsolve.operator("ct", image_size=24, **settings)
    x = torch.rand(count, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    y = operator(x)
    back = operator.adjoint(y)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            image = x.clone().requires_grad_()
            found = operator(image)
            # Sums of a row are the same sums; Fourier's transforms may be planned otherwise.
            torch.testing.assert_close(found, y, atol=1e-5, rtol=0)
            torch.testing.assert_close(operator.adjoint(y), back, atol=1e-4, rtol=0)
            (gradient,) = torch.autograd.grad(found, image, y)
            torch.testing.assert_close(gradient, back, atol=1e-4, rtol=0)
            with torch.inference_mode():
                assert torch.equal(operator(x), found)
        finally:
            torch.set_num_threads(1)
