"""Rows, token shards, training instances and batches."""
