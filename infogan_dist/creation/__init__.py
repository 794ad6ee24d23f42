"""The creation of shard sets: where images come from, and how they are written."""
