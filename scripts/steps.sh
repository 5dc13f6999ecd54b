# shellcheck shell=bash
# Runs the steps of a check, reports the result of each, and prints a table at the end. Sourced by
# scripts/check.sh and scripts/test.sh. The steps of a lane run one after the other. Lanes run side
# by side, because most steps wait for a broker most of the time.

# The exit status of a step that this machine cannot run.
SKIPPED=77

begin_steps() {
    records=$(mktemp -d)
    lanes='' passed=0 failed=0
    : >"$records/table"
    mkfifo "$records/ended"
    # For both directions, because an open for one waits for the other.
    exec 3<>"$records/ended"
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
}

# side_by_side LANE...: runs these functions, and waits until all have ended. The first step that
# fails ends the script, which ends the lanes.
side_by_side() {
    local lane open=$#
    for lane in "$@"; do
        # In a process group of its own, so that a signal reaches all of its processes.
        set -m
        run_lane "$lane" </dev/null &
        set +m
        lanes="$lanes $!"
    done
    local status seconds name
    while [ "$open" -gt 0 ]; do
        read -r status seconds name <&3
        if [ "$status" = end ]; then
            open=$((open - 1))
        else
            report "$status" "$seconds" "$name"
        fi
    done
    lanes=
}

run_lane() {
    trap 'echo "end of a lane" >&3' EXIT
    end_after_the_step
    "$1"
}

# A signal reaches all processes of a lane. Because of the trap, bash exits only after the running
# command has ended, which may have to clean up.
end_after_the_step() {
    trap 'exit 143' HUP INT TERM
}

# step NAME COMMAND...
step() {
    local name=$1 begun=$SECONDS status
    shift
    echo "== $name"
    echo "$*" >"$(record "$name").command"
    # Without ||, after which a function would ignore set -e.
    set +e
    (end_after_the_step; set -e; "$@") >"$(record "$name")" 2>&1 3>&-
    status=$?
    set -e
    echo "$status $((SECONDS - begun)) $name" >&3
    [ $status = 0 ] || [ $status = $SKIPPED ] || exit 1
}

# step_if TOOL NAME COMMAND...
step_if() {
    local tool=$1 name=$2
    shift
    command -v "$tool" >/dev/null || set -- "$name" skip "$tool is not installed"
    step "$@"
}

skip() {
    echo "skipped: $1"
    return $SKIPPED
}

record() {
    echo "$records/${1//[^a-zA-Z]/-}"
}

# Prints the output of a step in one piece, after the step has ended.
report() {
    local status=$1 seconds=$2 name=$3 how
    cat "$(record "$name")"
    case $status in
        0) how=passed passed=$((passed + 1)) ;;
        "$SKIPPED") how=SKIPPED ;;
        *) how=FAILED failed=1 ;;
    esac
    echo "-- $name: $how after $seconds s"
    printf '%5d s  %-7s  %s\n' "$seconds" "$how" "$name" >>"$records/table"
    [ $how != FAILED ] || give_up "FAILED: $name, with status $status: $(cat "$(record "$name").command")"
}

give_up() {
    echo "${0##*/}: $1" >&2
    exit 1
}

interrupted() {
    trap '' HUP INT TERM
    echo "${0##*/}: interrupted: cleaning up" >&2
    exit "$1"
}

end_lanes() {
    local lane
    for lane in $lanes; do kill -TERM -- "-$lane" 2>/dev/null || true; done
    for lane in $lanes; do wait "$lane" || true; done 2>/dev/null
}

# The table, the slowest step first, and the count as the last line.
print_table() {
    sort -rn "$records/table"
    printf '%5d s  in all\n' "$SECONDS"
    echo "$passed passed, $failed failed"
    rm -rf "$records"
}
