"""The world model as torch modules: encoder, RSSM, decoder, heads, and the distributions they predict."""
