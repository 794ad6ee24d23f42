"""The two halves of `simulate_scale.py`: reading and communication."""
