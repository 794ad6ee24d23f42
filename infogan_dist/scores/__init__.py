"""Scores of a trained model: code recovery, information, control, fidelity and disentanglement."""
