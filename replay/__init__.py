"""Replay: the chunk log, its index, sampling, server and client."""
