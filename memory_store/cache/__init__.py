"""The cache tier: msgpack bytes of committed rows in memory, saved to a file. Disposable, and never wrong."""
