"""Images as sharded tar files, in an order that no number of processes changes."""
