"""The benchmark: runs cells (scenario x strategy x seed), keeps their records, draws the report."""
