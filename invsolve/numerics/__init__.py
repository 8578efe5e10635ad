"""Tensors only: linear algebra, Krylov solvers, random numbers, schedules, ODE solvers."""
