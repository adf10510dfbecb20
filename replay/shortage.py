"""The shortage: that a replay holds no sequence to train on, and why that stays so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_ENOUGH_SEQUENCES = 20
"""A replay with steps for so many sequences has shown how long the episodes are that chance plays."""
_ENOUGH_LIVES = 10
"""So many lives to each environment have shown how long one lasts."""


class Shortage(NamedTuple):
    """What a replay holds that has no valid start.

    Attributes:
        length: T, steps of a training sequence.
        across_episodes: whether it may run on into the next episode.
        steps: stored.
        dropped: steps that were stored and are no more.
        streams: of which something is stored: one for each environment in each life of its actor.
        longest_stream: most steps of one of them that follow each other.
        longest_episode: most of these that are of one episode and not held out.
    """

    length: int
    across_episodes: bool
    steps: int
    dropped: int
    streams: int
    longest_stream: int
    longest_episode: int

    @staticmethod
    def of_all(shards: Sequence[Shortage]) -> Shortage:
        """Return the shortage of several shards together."""
        _, _, steps, dropped, streams, stream, episode = zip(*shards, strict=True)
        return Shortage(*shards[0][:2], sum(steps), sum(dropped), sum(streams), max(stream), max(episode))

    def cause(self, share: float, environments: int, collected: int) -> str:
        """Return in words why no more steps of the same kind would help; nothing while they may.

        Args:
            share: of all environment steps that are to be collected, how much is.
            environments: how many there are at a time, of all actors.
            collected: steps since this start of the run.
        """
        if self.longest_stream >= self.length:
            may_help = share < 1 and self.steps < _ENOUGH_SEQUENCES * self.length
            return "" if may_help else self._cause_in_episodes(share)
        most = f"at most {self.longest_stream} that follow each other"
        if self.dropped and collected >= self.steps:
            return (
                f"the replay keeps {self.steps}, {most} of each of {self.streams} streams, and drops those before: "
                "raise replay.capacity_steps or replay.capacity_gb, or lower learner.sequence_length"
            )
        if self.streams >= _ENOUGH_LIVES * environments:
            return (
                f"they are of {self.streams} short lives of environments, {most} of each: see in the log what ends "
                f"them, or set learner.sequence_length to {self.longest_stream} or less"
            )
        if share >= 1 or 2 * self.longest_stream < share * self.length:  # streams grow by turns, not quite alike
            return (
                f"they are of {self.streams} environments, {most} of each: raise train.env_steps, or lower "
                "actors.count, actors.environments or learner.sequence_length"
            )
        return ""

    def _cause_in_episodes(self, share: float) -> str:
        """Return the cause where there are streams that are long enough."""
        if self.across_episodes:  # what is held out ends after some steps, or with the run
            return "" if share < 1 else "they are held out; raise train.env_steps, or set replay.held_out_every to 0"
        return (
            f"the longest episode has {self.longest_episode} steps, and with replay.across_episodes false a sequence "
            f"stays within one: set that to true, or learner.sequence_length to {self.longest_episode} or less"
        )
