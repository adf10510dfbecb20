"""dreamfleet: RSSM world models learned from pixels by a distributed actor-learner service."""

__version__ = "0.1.0"
