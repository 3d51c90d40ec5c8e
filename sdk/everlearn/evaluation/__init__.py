"""What was learned, measured: metrics, the runner, benchmarks over methods and seeds."""
