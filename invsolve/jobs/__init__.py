"""The jobs behind the command line and pipelines that write files: simulate, reconstruct, evaluate, sample."""

from invsolve.jobs.evaluation import evaluate_file
from invsolve.jobs.one_file import run_into_file
from invsolve.jobs.preparation import prepare
from invsolve.jobs.reconstruction import reconstruct_file
from invsolve.jobs.request import Request, read_slices, refuse_existing
from invsolve.jobs.sampling import sample_file
from invsolve.jobs.simulation import simulate_file

__all__ = [
    "Request",
    "evaluate_file",
    "prepare",
    "read_slices",
    "reconstruct_file",
    "refuse_existing",
    "run_into_file",
    "sample_file",
    "simulate_file",
]
