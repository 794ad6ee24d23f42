#!/usr/bin/env python
"""Makes a shard set; the same as `python -m infogan_dist.make_shards`."""

from infogan_dist.make_shards import main

if __name__ == "__main__":
    main()
