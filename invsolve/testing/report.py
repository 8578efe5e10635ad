"""Findings of a check: one line a property, with its figure and limit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One property: whether it holds, the figure measured, the limit, and the remedy when it does not hold.

    `skipped`: it was not looked at, or is known not to hold; `text` says why.
    """

    name: str
    ok: bool
    figure: float | None = None
    limit: float | None = None
    text: str = ""
    skipped: bool = False

    def __str__(self) -> str:
        figure = "" if self.figure is None else f" {self.figure:.1e}"
        limit = "" if self.limit is None else f" (limit {self.limit:.0e})"
        text = f": {self.text}" if self.text else ""
        return f"{'skip' if self.skipped else 'ok  ' if self.ok else 'FAIL'} {self.name}{figure}{limit}{text}"


@dataclass(repr=False)
class Report:
    """All findings about one plugin. True when all hold; prints one line each."""

    subject: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(f.ok for f in self.findings)

    @property
    def failures(self) -> list[Finding]:
        return [f for f in self.findings if not f.ok]

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {'all hold' if self.ok else f'{len(self.failures)} broken'}"]
        return "\n".join([*lines, *(f"  {f}" for f in self.findings)])
