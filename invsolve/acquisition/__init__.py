"""Active acquisition: sessions in which the prior chooses what an instrument measures next."""

from invsolve.acquisition.beginning import acquire
from invsolve.acquisition.session import Session

__all__ = ["Session", "acquire"]
