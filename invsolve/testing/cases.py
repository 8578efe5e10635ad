"""A case: one property of one plugin under a name, to be run by pytest or to be a line in a report."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from invsolve.errors import UserError
from invsolve.testing.report import Finding, Report


class NotApplicable(Exception):
    """A property that says nothing about this plugin, found out on the way; the text says why."""


@dataclass(frozen=True)
class Case:
    """One property of one plugin. Call it in a test: it raises AssertionError where the property does not hold.

    Attributes:
        name: the property, and where it is looked at: "adjoint, 12x13 float32".
        check: looks, and tells what it found; may raise `NotApplicable`.
        absent: why the property says nothing about this plugin ("not maskable"); it is then not looked at.
        expected: why it is known not to hold; a property that then does hold is a failure.
    """

    name: str
    check: Callable[[], Finding]
    absent: str = ""
    expected: str = ""

    # pytest names the parameters of a test after this attribute.
    @property
    def __name__(self) -> str:
        return self.name

    @property
    def property(self) -> str:
        """The name without the place: "adjoint"."""
        return self.name.partition(",")[0]

    def finding(self) -> Finding:
        """Look. An error on the way is a finding; what does not apply, and what fails as expected, holds, with the reason."""
        try:
            if self.absent:
                raise NotApplicable(self.absent)
            finding = replace(self.check(), name=self.name)
        except NotApplicable as reason:
            return Finding(self.name, True, text=f"does not apply: {reason}", skipped=True)
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            finding = Finding(self.name, False, text=f"{type(error).__name__}: {first}")
        if not self.expected:
            return finding
        if finding.ok:
            return Finding(
                self.name, False, text=f"holds, though expected not to ({self.expected}): take it off the list"
            )
        return replace(finding, ok=True, text=f"fails as expected: {self.expected}", skipped=True)

    def __call__(self) -> None:
        """Look, as a test.

        Raises:
            AssertionError: the property does not hold; or holds although it is expected not to.
            unittest.SkipTest: it does not apply, or fails as expected; pytest and unittest show the reason.
        """
        finding = self.finding()
        if not finding.ok:
            raise AssertionError(str(finding))
        if finding.skipped:
            raise unittest.SkipTest(finding.text)


def expecting(cases: Sequence[Case], expected: Mapping[str, str]) -> list[Case]:
    """The cases, with the reasons why some properties are known not to hold.

    Args:
        expected: reason by the name of a property ("adjoint"), or of one case ("adjoint, 12x13 float32").

    Raises:
        UserError: a property that is not among them.
    """
    known = {name for case in cases for name in (case.name, case.property)}
    for name in expected:
        if name not in known:
            there = ", ".join(dict.fromkeys(case.property for case in cases))
            raise UserError(f"testing: no property is called {name!r}; there are: {there}")
    return [replace(c, expected=expected.get(c.name, expected.get(c.property, ""))) for c in cases]


def report_of(subject: str, cases: Iterable[Case]) -> Report:
    """Look at every case: one line a property. An error that many properties run into is told once."""
    report, errors = Report(subject), set[str]()
    for case in cases:
        finding = case.finding()
        if finding.ok or finding.text not in errors:
            report.findings.append(finding)
        if not finding.ok and finding.figure is None:
            errors.add(finding.text)
    return report


def below(figure: float, limit: float, remedy: str) -> Finding:
    """A figure that must not exceed its limit, and must not be NaN."""
    ok = figure <= limit
    return Finding("", ok, figure, limit, "" if ok else remedy)


def holds(ok: bool, remedy: str, note: str = "") -> Finding:
    """A property that holds or not; `note` is told where it does."""
    return Finding("", ok, text=note if ok else remedy)
