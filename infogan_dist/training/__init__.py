"""Training: the state, one step, a run, and the loop."""
