"""What a finished run is worth on public benchmarks: tasks of lm-evaluation-harness for policies, ranked replies for reward models."""
