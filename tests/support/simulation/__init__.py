"""Deterministic simulation: real code, a simulated store or API server, and all schedules up to a bound."""
