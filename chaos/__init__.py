"""Chaos tests: break a real Cynosure on purpose, and compare the accepted jobs with the results."""
