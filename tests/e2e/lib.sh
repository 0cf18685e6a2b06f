# shellcheck shell=bash
# Helpers of the end-to-end run: checks and their count, processes that are
# always ended, bounded waits, the clients' configuration, the final clean-up.
#
# run creates $WORK before any of this is used. Everything that lives in $WORK dies with it.

passed=0
failed=0
skipped=0
failures=()
last=ok # what the last check was: ok or failed

# --- Checks -------------------------------------------------------------------

note() { printf '# %s\n' "$*"; }

# How the line of every check starts: "ok 12", "not ok 13".
next_number() { printf '%d' $((passed + failed + skipped + 1)); }

# check NAME COMMAND...: one line on the terminal; on failure also what the command said and the
# tails of the logs. The command runs in a subshell with errexit, so its first failing line fails
# the check. State that must survive is kept in files below $WORK. Never ends the run: what comes
# next may look at $last.
check() {
  local name=$1 status number
  shift
  number=$(next_number)
  set +e
  (
    set -eu
    "$@"
  ) >"$WORK/check.out" 2>&1
  status=$?
  set -e
  if [ "$status" = 0 ]; then
    passed=$((passed + 1))
    last=ok
    printf 'ok %d %s\n' "$number" "$name"
    return 0
  fi
  failed=$((failed + 1))
  last=failed
  failures+=("$number $name")
  printf 'not ok %d %s (status %d)\n' "$number" "$name" "$status"
  sed 's/^/#   /' "$WORK/check.out" | tail -n 40
  log_tails
}

# skip NAME WHY: counted, loud, and in CI as bad as a failure (see summary).
skip() {
  printf 'ok %d %s # SKIP %s\n' "$(next_number)" "$1" "$2"
  printf '#\n# !!!! SKIPPED: %s: %s\n#\n' "$1" "$2"
  skipped=$((skipped + 1))
}

# The end of every log that was written to during the last minute: millpond's, the upstreams', the
# daemons'.
log_tails() {
  local log
  while IFS= read -r log; do
    printf '#   --- %s\n' "${log#"$WORK"/}"
    tail -n 10 "$log" | cut -c1-240 | sed 's/^/#   | /'
  done < <(find "$LOGS" -name '*.[oe]*' -size +0 -mmin -1 | sort)
}

# quietly COMMAND...: a step between checks. When it fails, the checks that need it will.
quietly() {
  "$@" >>"$LOGS/harness.out" 2>&1 || note "failed: $*: $(tail -n 1 "$LOGS/harness.out")"
}

# Said inside checks: an explanation on the check's output, then failure.
die() {
  printf '%s\n' "$*" >&2
  return 1
}

# same WHAT EXPECTED ACTUAL: asserts equality, and shows both sides when it doesn't hold.
same() {
  [ "$2" = "$3" ] || die "$1: expected: $2
$1: but got:  $3"
}

summary() {
  local failure
  for failure in ${failures[@]+"${failures[@]}"}; do
    note "failed: $failure"
  done
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" = 0 ] || return 1
  # In CI every client has to run: a skipped one is a hole nobody would look at.
  [ "$skipped" = 0 ] || [ "${CI:-}" != true ] || return 1
  [ "$passed" != 0 ]
}

# --- Waiting ------------------------------------------------------------------

# wait_until SECONDS WHAT COMMAND...: polls an event, up to a deadline.
wait_until() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "gave up waiting for $what" || return
    sleep 0.05
  done
}

# --- Processes ----------------------------------------------------------------
# Each has a name: its pid is in $PIDS/NAME, its output in $LOGS/NAME.out and NAME.err. The
# environment carries the run's id, so that a recycled pid is never taken for one of ours.

spawn() {
  local name=$1
  shift
  E2E_RUN_ID=$RUN_ID "$@" >>"$LOGS/$name.out" 2>>"$LOGS/$name.err" </dev/null &
  printf '%d\n' $! >"$PIDS/$name"
}

pid_is_ours() {
  grep -zqxs "E2E_RUN_ID=$RUN_ID" "/proc/$1/environ"
}

# A zombie has an empty environment, so a process that only waits for its parent counts as gone.
pid_is_gone() { ! pid_is_ours "$1"; }

# running NAME: is that process still there?
running() { [ -e "$PIDS/$1" ] && pid_is_ours "$(cat "$PIDS/$1")"; }

# stop NAME: TERM, then KILL after ten seconds. Silent when it isn't running. Succeeds only when
# TERM was enough.
stop() {
  local name=$1 pid status=0
  [ -e "$PIDS/$name" ] || return 0
  pid=$(cat "$PIDS/$name")
  rm -f "$PIDS/$name"
  pid_is_ours "$pid" || return 0
  kill "$pid" 2>/dev/null || true
  if ! wait_until 10 "$name to end" pid_is_gone "$pid"; then
    note "$name ignored TERM: killed"
    kill -KILL "$pid" 2>/dev/null || true
    wait_until 10 "$name to die" pid_is_gone "$pid"
    status=1
  fi
  wait "$pid" 2>/dev/null || true
  return "$status"
}

# Takes everything down, newest first, whatever state the run is in.
cleanup() {
  local name pid
  set +e
  # shellcheck disable=SC2012
  while IFS= read -r name; do
    stop "$name"
  done < <(ls -t "$PIDS" 2>/dev/null)
  # What our daemons started themselves (dockerd's own containerd, shims, conmon) inherits the id.
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    if [ "$pid" != "$$" ] && pid_is_ours "$pid"; then
      kill -KILL "$pid"
    fi
  done 2>/dev/null
  umount_below "$WORK"
  if [ -n "${E2E_KEEP:-}" ]; then
    note "kept: $WORK"
  else
    rm -rf "$WORK"
  fi
}

# umount_below FOLDER: overlays and network namespaces that a daemon left mounted.
umount_below() {
  local mount
  while IFS= read -r mount; do
    umount --lazy "$mount" || true
  done < <(cut -d' ' -f5 /proc/self/mountinfo | grep "^$1/" | sort -r)
}

# free_ports N: as many free ports, all different because all are held at the same time.
free_ports() {
  /usr/bin/python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[s.getsockname()[1] for s in held])
PYTHON
}

# --- The clients' configuration ------------------------------------------------------

# client_config CLIENT URL OPTION...: writes it below $WORK/client-root, which stands for the client's
# root directory. The README shows what the command prints (tests/it/client_config.rs compares them), so
# an example that doesn't work can't stay in it.
CLIENT_ROOT=$WORK/client-root

client_config() {
  local client=$1 url=$2
  shift 2
  mkdir -p "$CLIENT_ROOT"
  "$MILLPOND" client-config "$client" --mirror "$url" --write "$CLIENT_ROOT" "$@"
}
