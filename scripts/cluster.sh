#!/usr/bin/env bash
# Owns one private RabbitMQ cluster of three nodes per folder: start, stop, break, mend, control.
# Each node is a broker of scripts/broker.sh in a folder below; what they share is theirs alone.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# What this calls of it: how to find a RabbitMQ and ports, and to start and end processes.
# shellcheck source=scripts/broker.sh
. "$here/broker.sh"

NODES="1 2 3"

usage() {
    cat <<'TEXT'
usage: scripts/cluster.sh --dir DIR COMMAND

A private RabbitMQ cluster of three nodes for tests: on free ports of 127.0.0.1, beside any other
broker and without touching it. Each DIR is one cluster.

  start         make it and start it, and print its URLs; start again what was stopped
  start N       start node N again (1, 2 or 3), after a kill or a stop
  stop          stop it and remove what start made in DIR
  stop N        stop node N in good order; its data stays
  kill N        kill -9 of node N
  pause N       stop node N in its tracks: its sockets stay open, and nobody answers
  resume N      let it go on
  run COMMAND   start it, run COMMAND with DIR as RW_TEST_CLUSTER, and stop it
  url [N...]    the URLs of these nodes (all three), in this order, separated by commas
  ctl N ARGS... rabbitmqctl ARGS... against node N

It takes an installed rabbitmq-server, or installs one as scripts/broker.sh does.
Exit: 0 done, 1 failed, 2 usage, 69 no rabbitmq-server to start it with.
TEXT
}

main() {
    [ "${1:-}" != --help ] || { usage; exit 0; }
    if [ $# -lt 3 ] || [ "$1" != --dir ]; then usage_error "a folder and a command are needed"; fi
    cluster=$2
    case $cluster in /*) ;; *) cluster=$PWD/$cluster ;; esac
    local command=$3
    shift 3
    case $command in
        start) if [ $# = 0 ]; then start_all; else start_node "$@"; fi ;;
        stop) if [ $# = 0 ]; then stop_all; else node "$1" stop --keep; fi ;;
        kill) signal KILL "$@" ;;
        pause) signal STOP "$@" ;;
        resume) signal CONT "$@" ;;
        run) run "$@" ;;
        url) urls "$@" ;;
        ctl) local number=$1; shift; node "$number" ctl "$@" ;;
        *) usage_error "unknown command '$command'" ;;
    esac
}

# node NUMBER COMMAND...
node() {
    case $1 in [123]) ;; *) usage_error "'$1' is none of the nodes $NODES" ;; esac
    (become_node "$@")
}

# In the background it is that process itself, so that a signal reaches it.
become_node() {
    local number=$1
    shift
    exec env -u AMQP_URL -u RW_MANAGEMENT "$here/broker.sh" --dir "$cluster/$number" "$@"
}

start_node() {
    node "$1" start >/dev/null
}

signal() {
    kill "-$1" "$(node "$2" pid)"
}

urls() {
    local number
    # shellcheck disable=SC2086 # words
    [ $# -gt 0 ] || set -- $NODES
    for number in "$@"; do
        dir=$cluster/$number
        load_state
        [ -n "$port" ] || fail "there is no cluster in $cluster; start it: $0 --dir '$cluster' start"
        own_url
    done | paste -s -d , -
}

# ---- starting ----

start_all() {
    trap give_back EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    undo=yes children='' what=broker.sh
    if [ -d "$cluster" ]; then undo=; else make_cluster; fi
    start_names
    local number child status=0
    for number in $NODES; do
        become_node "$number" start >/dev/null &
        children="$children $!"
    done
    for child in $children; do wait "$child" || status=$?; done
    children=
    [ $status = 0 ] || fail "a node did not start"
    await_one_cluster
    undo=
    urls
}

# The cluster ends with the command, whatever ends that.
run() {
    start_all >/dev/null
    undo=yes what=$1
    RW_TEST_CLUSTER=$cluster "$@" &
    children=$!
    wait "$children"
}

make_cluster() {
    local chosen
    chosen=$(choose_kind)
    [ "$chosen" = native ] || { note "one RabbitMQ in Docker is no cluster; install rabbitmq-server"; exit 69; }
    mkdir -p "$cluster/names"
    cluster=$(cd "$cluster" && pwd -P)
    local number names_port cookie ports=()
    names_port=$(free_port)
    cookie=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
    echo "epmd_port=$names_port" >"$cluster/names/node.env"
    for number in $NODES; do ports[number]=$(free_port); done
    for number in $NODES; do
        make_node "$cluster/$number" "${ports[number]}" "$names_port" "$cookie"
        join_nodes "${ports[@]}" >"$cluster/$number/extra.conf"
    done
}

# As scripts/broker.sh leaves a node that was stopped and keeps its data.
make_node() {
    mkdir -p "$1/node/home"
    printf '%s\n' kind=native "node=rw-$2@localhost" "port=$2" "lent_epmd_port=$3" >"$1/node.env"
    (umask 077 && printf %s "$4" >"$1/node/home/.erlang.cookie")
    # When a node dies, the broker offers delayed tasks to their queue again after this time, which
    # is 3 minutes by default, and 32 of them hold up all others (docs/failures.md).
    echo '[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 10000}]}].' \
        >"$1/node/advanced.config"
}

join_nodes() {
    echo "cluster_partition_handling = pause_minority"
    echo "cluster_formation.peer_discovery_backend = classic_config"
    local number=0
    while [ $# -gt 0 ]; do
        echo "cluster_formation.classic_config.nodes.$((number += 1)) = rw-$1@localhost"
        shift
    done
}

# The name server of the three: none of them may take it along when it stops.
start_names() {
    dir=$cluster/names
    load_state
    ! is_process "$epmd_pid" "-port $epmd_port " || return 0
    find_native || fail "no usable rabbitmq-server: $(what_to_install)"
    mkdir -p "$dir/node/home"
    launch_epmd || fail "the nodes' name server did not start on port $epmd_port"
}

# A node that did not find the others would start as a cluster of one.
await_one_cluster() {
    local deadline=$((SECONDS + START_SECONDS))
    until [ "$(node 1 ctl -q eval 'length(rabbit_nodes:all_running()).' 2>/dev/null)" = 3 ]; do
        [ $SECONDS -lt $deadline ] || fail "the nodes did not become one cluster"
        sleep 0.2
    done
}

# ---- stopping ----

# Runs at every exit of a start or a run: undoes what is not to stay.
give_back() {
    local code=$? child
    trap '' HUP INT TERM
    # All of them first, as each takes its time. No wait: one that a signal has ended may not see
    # the end of its child any more.
    for child in $children; do kill -TERM "$child" 2>/dev/null || true; done
    for child in $children; do end_process "$child" "$what" "$START_SECONDS"; done
    [ -z "$undo" ] || stop_all
    exit $code
}

# All at once: a node that stops waits for none of the others.
stop_all() {
    local number child stopping=''
    [ -d "$cluster/names" ] || { note "not running"; return; }
    for number in $NODES; do
        become_node "$number" stop 2>/dev/null &
        stopping="$stopping $!"
    done
    for child in $stopping; do
        while is_process "$child" broker.sh; do sleep 0.1; done
    done
    dir=$cluster/names
    load_state
    halt
    rm -rf "$dir" "$cluster"/[123]
    rmdir "$cluster" 2>/dev/null || true
    note "stopped; removed its data"
}

note() {
    echo "cluster: $*" >&2
}

usage_error() {
    note "$* (see scripts/cluster.sh --help)"
    exit 2
}

main "$@"
