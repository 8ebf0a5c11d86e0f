"""Decoding: laws of the next token that a divergence, a constraint or a bound on KL leads to."""

from __future__ import annotations

from jdiv.decoding import automata, bregman, constrained, smc, steering, tracing
from jdiv.decoding.automata import Automaton

__all__ = ["Automaton", "automata", "bregman", "constrained", "smc", "steering", "tracing"]
