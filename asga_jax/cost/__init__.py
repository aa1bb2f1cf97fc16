"""What a policy costs: MACs, bit operations, size, latency, budgets."""
