"""The fault drill's parts; `fault_drill.py` runs them."""
