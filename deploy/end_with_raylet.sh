#!/usr/bin/env bash
# Waits for this node's raylet to end, then ends what Ray leaves behind: its log monitor, which would stay for ever, and
# its agents, which hear no gentle signal while they try to reach the head. For nodes that stay when the cluster goes.
raylet=$(pgrep -nx raylet) || exit 1
monitor=$(pgrep -nf 'ray/_private/log_monitor.py')
while kill -0 "$raylet"; do
  children=$(pgrep -P "$raylet") && last=$children
  sleep 2
done
# shellcheck disable=SC2086 # one argument for each process
kill -KILL $monitor ${last:-}
