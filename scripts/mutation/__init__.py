"""The changes that `mutation_run.py` plants."""
