"""A module that registers environments as it is imported, and notes what MuJoCo was to draw with by then."""

from __future__ import annotations

import os

import gymnasium

library = os.environ.get("MUJOCO_GL")

gymnasium.register("Registered-v0", entry_point="moving_square_environment:make", max_episode_steps=7)
gymnasium.register("Registered-v2", entry_point="moving_square_environment:MovingSquare", max_episode_steps=9)
gymnasium.register("registering/Square-v3", entry_point="moving_square_environment:MovingSquare")
