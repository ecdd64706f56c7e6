"""From files to a corpus of token shards."""
