"""The faults of `fault_drill.py` and the bench on which they are tried."""
