# The environment of a cluster's nodes: sourced before `ray start`, which hands it on to all it starts, and by the login
# shells of `ray exec` and `ray attach`. For bash; sourcing it twice changes nothing.

# Nobody comes in without the token in ~/.ray/auth_token.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
# Ray's control process would keep a record of each call for `ray list tasks`, up to 100,000 of 3 kB: some minutes' orders.
export RAY_task_events_report_interval_ms=0
# How long `ray job stop` waits before it kills: a run writes its last checkpoint meanwhile. Ray's own default is 3.
export RAY_JOB_STOP_WAIT_TIME_S=150

# Environments that render find no screen on a node. SDL: pygame, that is Gymnasium's Box2D and classic control.
export SDL_VIDEODRIVER=dummy SDL_AUDIODRIVER=dummy
# MuJoCo: EGL renders with and without a GPU (by Mesa); OSMesa is no longer part of Mesa since 25.1.
export MUJOCO_GL=egl
export PYGLET_HEADLESS=true

# The checkout that was shipped and its packages go before all others.
case ":$PATH:" in
  *":$HOME/.dreamfleet/venv/bin:"*) ;;
  *) export PATH="$HOME/.dreamfleet/bin:$HOME/.dreamfleet/venv/bin:$PATH" ;;
esac
case ":${PYTHONPATH:-}:" in
  *":$HOME/dreamfleet/.pkg:"*) ;;
  *) export PYTHONPATH="$HOME/dreamfleet/.pkg${PYTHONPATH:+:$PYTHONPATH}" ;;
esac

# Ray opens a connection for each worker of each node. Where 65536 files are not allowed, take what is.
if [ "$(ulimit -Sn)" != unlimited ] && [ "$(ulimit -Sn)" -lt 65536 ]; then
  ulimit -Sn 65536 2>/dev/null || ulimit -Sn "$(ulimit -Hn)"
fi
