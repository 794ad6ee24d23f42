"""What a run needs beside the model: processes, checkpoints, metrics, logs and pictures."""
