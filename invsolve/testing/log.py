"""A report that a check writes as it goes, where one property needs what the last one found."""

from __future__ import annotations

from collections.abc import Callable

from invsolve.testing.report import Finding, Report


class Log(Report):
    """Findings, noted one after the other."""

    def below(self, name: str, figure: float, limit: float, remedy: str) -> None:
        """Note a figure that must not exceed its limit (and must not be NaN)."""
        ok = figure <= limit
        self.findings.append(Finding(name, ok, figure, limit, "" if ok else remedy))

    def holds(self, name: str, ok: bool, remedy: str = "", note: str = "") -> None:
        """Note a property that holds or not."""
        self.findings.append(Finding(name, ok, text=note if ok else remedy))

    def attempt(self, name: str, check: Callable[[], None]) -> None:
        """Run a check; an exception in it is a finding."""
        try:
            check()
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            self.findings.append(Finding(name, False, text=f"{type(error).__name__}: {first}"))
