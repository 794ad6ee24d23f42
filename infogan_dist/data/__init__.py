"""Images in sharded tar files, read in an order that does not depend on the number of processes."""
