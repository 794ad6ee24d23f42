"""The checks of `python -m infogan_dist.doctor`: of a machine, and of a run before it starts."""
