"""Simulations: scenarios, three runtimes, reports and benchmarks."""
