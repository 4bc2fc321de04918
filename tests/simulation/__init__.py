"""Deterministic simulation of the coherence code: several processes, one database, one seed."""
