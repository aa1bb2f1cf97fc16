"""Scores, costs and a budget to a policy, exactly; the frontier."""
