"""What a run returns: mean, uncertainty, samples, diagnostics and where it all came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from invsolve.contracts.paper import Paper, bibliography, entry


@dataclass
class Reconstruction:
    """A posterior, summarised; images in physical units.

    Attributes:
        mean: (N, C, *spatial), mean of the samples.
        std: (N, C, *spatial), their standard deviation (unbiased); zeros when there is only one sample.
        samples: (N, S, C, *spatial).
        diagnostics: `residual` (N, S, steps), norm of y - A(D) per step in units of its expected value, NaN for steps at
            which the strategy did not compute it; `discrepancy` (N, S), norm of y - A(sample) in the same units, for exact
            draws 1 +- 1 / sqrt(2 `discrepancy_dof`), infinite where a run diverged; `discrepancy_report`, a line that judges it;
            `reach` and `span` (N, S), where a sample lies in the prior's range, see `Problem.reach`; `inner_unconverged`
            (N, S), how many solves inside a sample's steps ended at their last iteration instead of at their tolerance;
            `at_ceiling` (N, S), 1 where an iterative strategy did the same; `remarks`, a line on either; per-item lists
            `network_calls`, `vjp_calls`, `operator_calls` (each per sample) and `seconds`; and what the strategy's
            `diagnostics` returned.
        provenance: versions, parameters, seed, scale, prior and its hash.
    """

    mean: Tensor
    std: Tensor
    samples: Tensor
    diagnostics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def citation(self) -> str:
        """BibTeX of what the images rest on: strategy, operator and prior, where they are of a publication, and invsolve.

        Taken from `provenance`, so that what a result cites is what made it, whatever is installed now.
        """
        papers = [Paper.from_record(fields) for fields in self.provenance.get("papers", ())]
        version = str(self.provenance.get("versions", {}).get("invsolve", ""))
        # Braced twice, because BibTeX would take the words of one author's name apart.
        fields = {"title": "{invsolve}", "author": "{The invsolve authors}", "version": version}
        ours = entry("software", "invsolve", fields)
        return "\n\n".join(part for part in (bibliography(papers), ours) if part)

    def __repr__(self) -> str:
        n, s = self.samples.shape[:2]
        strategy = self.provenance.get("strategy", {}).get("name", "?")
        return f"Reconstruction({n} items x {s} samples of {tuple(self.samples.shape[2:])}, strategy {strategy!r})"
