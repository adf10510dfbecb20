"""The format of experience: spaces, steps, and the compressed chunks that steps travel and are stored in."""
