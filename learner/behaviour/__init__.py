"""Learning to act in imagination: the actor-critic of Dreamer V1 to V3, and Plan2Explore's exploring."""
