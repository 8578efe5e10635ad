"""Active acquisition: sessions in which the prior chooses what an instrument measures next, and the policies that choose."""

from invsolve.acquisition.policies import POLICIES, policy
from invsolve.acquisition.session import Session, acquire

__all__ = ["POLICIES", "Session", "acquire", "policy"]
