"""The replay: stores experience on disk, and gives back sequences to train on.

The words for what it holds: a *step* is one observation with its action; a *stream* is the steps of one environment in
one incarnation of its actor; a *chunk* is up to 64 consecutive steps of a stream, compressed in *blocks*, and travels
and is stored as one; a *segment* is a file of chunks; a *sequence* is T steps cut from the chunks of one stream; a
*batch* is B sequences, which travel compressed.
"""
