"""The pool without Ray: everything in this process, one order at a time, in the order in which they were given."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

from dreamfleet.actors.collector import Collector
from dreamfleet.actors.actor import build_collector
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.common.steps import StepFormat
from dreamfleet.deploy.pool import Counters, Worker, WorkerFailedError
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.learner import Learner
from dreamfleet.replay.client import DirectSink
from dreamfleet.replay.replay import Replay
