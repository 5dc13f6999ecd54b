#!/usr/bin/env bash
# Runs producers and workers under a random sequence of faults, and prints the faults and the
# verdict: of the tasks attempted, how many were confirmed, lost, unexpected, done twice, dead.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

usage() {
    cat <<'TEXT'
usage: scripts/soak.sh [--cluster] [--minutes M] [--seed S]

Kills workers and a private broker, resets and swallows connections, raises alarms and deletes
empty queues, for M minutes (default 1), while some of the tasks fail once, and some always.
The same seed gives the same sequence of faults.

--cluster: kills, freezes and restarts the nodes of a private cluster of three instead, one at a
time, and kills workers. It must not stand still for more than 25 s, either.

Exit: 0 nothing was lost and each task ended where it belongs, 1 not so, or hung, 2 usage, 69 no
RabbitMQ to be had.
TEXT
}

main() {
    local minutes=1 seed=$RANDOM$RANDOM soak=soak::soak around=()
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    while [ $# -gt 0 ]; do
        case $1 in
            --cluster) soak=cluster::soak::cluster_soak around=(scripts/cluster.sh --dir "$work/cluster" run); shift ;;
            --minutes) [[ ${2-} =~ ^[0-9]+([.][0-9]+)?$ ]] || misused "--minutes takes a number"; minutes=$2; shift 2 ;;
            --seed) [[ ${2-} =~ ^[0-9]{1,18}$ ]] || misused "--seed takes a whole number"; seed=$2; shift 2 ;;
            --help | -h) usage; exit 0 ;;
            *) misused "what is $1?" ;;
        esac
    done
    cd "$here"
    local program=("${RW_IT:-}")
    if [ -z "${program[0]}" ]; then
        cargo build --locked --tests --bins
        program=(cargo test --locked --quiet --test it --)
    fi
    # What the faults, the deaths and the drain at the end may take on a slow machine, and more.
    local limit
    limit=$(awk -v minutes="$minutes" 'BEGIN { printf "%d", minutes * 60 + 600 }')
    export SOAK_MINUTES=$minutes SOAK_SEED=$seed
    echo "soak: $minutes minutes, seed $seed"
    export RW_TEST_RUN=${RW_TEST_RUN:-soak.$$}
    # In a process group of its own, which a Ctrl-C does not reach.
    timeout -k 30 "$limit" ${around[@]+"${around[@]}"} "${program[@]}" \
        "$soak" --exact --ignored --nocapture &
    running=$!
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    local status=0
    wait $running || status=$?
    [ $status = 0 ] || failed $status
}

failed() {
    [ "$1" != 69 ] || exit 69
    echo "soak: FAILED; run it again with --seed $SOAK_SEED" >&2
    exit 1
}

misused() {
    echo "soak: $1" >&2
    usage >&2
    exit 2
}

interrupted() {
    kill -TERM "$running" 2>/dev/null || true
    wait "$running" 2>/dev/null || true
    tests/end.sh "$RW_TEST_RUN"
    exit "$1"
}

main "$@"
