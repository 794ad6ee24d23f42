"""Parts of the scripts that check and time GPUs."""
