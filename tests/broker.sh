#!/usr/bin/env bash
# Checks scripts/broker.sh and scripts/cluster.sh with real nodes; the first failing check ends it, by name.
set -eu -o pipefail
unset AMQP_URL

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
work=$(mktemp -d)
work=$(cd "$work" && pwd -P)
one="$work/with a space" two=$work/two three=$work/three cluster=$work/cluster

main() {
    # Started first: their boots overlap on purpose.
    broker "$two" start >"$work/two.url" &
    local second=$!
    start_one || failed "start"
    wait $second || failed "start of a second broker at the same time"

    check "url is what start printed" same "$url" "$(broker "$one" url)"
    check "two brokers have two addresses" differ "$url" "$(cat "$work/two.url")"
    check "start is idempotent" same "$url" "$(broker "$one" start)"
    check "status says running" broker "$one" status
    check "AMQP_URL is shown without its password" same "amqp://u:***@h" "$(AMQP_URL=amqp://u:secret@h broker "$three" start)"
    check "AMQP_URL starts nothing" [ ! -e "$three" ]

    check "ctl reaches its own node" publish_durably
    check "ctl does not reach the other node" same "" "$(queues "$two")"
    check "stop --keep" broker "$one" stop --keep
    fails "status after stop" broker "$one" status
    fails "url after stop" broker "$one" url
    check "start after stop --keep has the same address" same "$url" "$(broker "$one" start)"
    check "a durable queue keeps its message over stop --keep" same "kept 1" "$(queues "$one")"

    kill -KILL "$(broker "$one" pid)"
    fails "status after a crash" broker "$one" status
    check "start after a crash has the same address" same "$url" "$(broker "$one" start)"
    check "a durable queue keeps its message over a crash" same "kept 1" "$(queues "$one")"

    check "stop" broker "$one" stop
    check "stop again" broker "$one" stop
    check "stop removes the folder" [ ! -e "$one" ]
    check "stop leaves the other broker alone" broker "$two" status
    kill -STOP "$(broker "$two" pid)"
    check "stop of a stopped process" broker "$two" stop
    check "an interrupted start leaves nothing" interrupt_start "$three/node/pid"
    check "neither does one that is interrupted as it begins" interrupt_start "$three/node.env"
    mkdir "$work/mine" && touch "$work/mine/file"
    fails "start in a folder of others" broker "$work/mine" start
    fails "stop of a folder of others" broker "$work/mine" stop
    check "a folder of others stays" [ -e "$work/mine/file" ]
    check "an interrupted cluster leaves nothing" interrupt_cluster
    check "no process is left" no_process
    echo "broker: all checks passed"
}

broker() {
    note_processes "$1"
    "$here/scripts/broker.sh" --dir "$@" 2>>"$work/messages"
}

# Before each command, so that those that a command ends are known, too.
note_processes() {
    [ ! -r "$1/node.env" ] || sed -n 's/^.*pid=\([0-9]\)/\1/p' "$1/node.env" >>"$work/processes"
}

start_one() {
    url=$(broker "$one" start)
}

# The broker publishes to itself, so that this needs no AMQP client.
publish_durably() {
    broker "$one" ctl eval '
        Queue = rabbit_misc:r(<<"/">>, queue, <<"kept">>),
        {new, _} = rabbit_amqqueue:declare(Queue, true, false, [], none, <<"check">>),
        Default = rabbit_misc:r(<<"/">>, exchange, <<>>),
        Message = rabbit_basic:message(Default, <<"kept">>, [{delivery_mode, 2}], <<"hello">>),
        ok = rabbit_basic:publish(rabbit_basic:delivery(false, false, Message, undefined)).'
}

queues() {
    broker "$1" ctl --quiet list_queues --no-table-headers name messages | tr '\t' ' '
}

# TERM, because a shell's background job starts with INT ignored. Once a file is there; below the
# 15 s after which a node is killed, which says that it heard of the end.
interrupt_start() {
    "$here/scripts/broker.sh" --dir "$three" start >"$work/three.url" 2>>"$work/messages" &
    local starting=$! deadline=$((SECONDS + 20))
    until [ -s "$1" ] && grep -qs '^pid=.' "$three/node.env"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
    note_processes "$three"
    sleep 0.1 # The machine is there, and heeds no signal yet.
    kill -TERM $starting
    deadline=$((SECONDS + 12))
    ! wait $starting && [ $SECONDS -lt $deadline ] && [ ! -e "$three" ] && [ ! -s "$work/three.url" ]
}

# Unless it says that there can be none here.
interrupt_cluster() {
    "$here/scripts/cluster.sh" --dir "$cluster" run sleep 600 2>>"$work/messages" &
    local running=$! deadline=$((SECONDS + 60)) number status=0
    until grep -qs '^pid=.' "$cluster/3/node.env"; do
        is_alive $running || { wait $running || status=$?; [ $status = 69 ] && return; return 1; }
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
    for number in 1 2 3 names; do note_processes "$cluster/$number"; done
    kill -TERM $running
    ! wait $running && [ ! -e "$cluster" ]
}

is_alive() {
    kill -0 "$1" 2>/dev/null
}

# What each node wrote down is its two processes. One that was killed takes a moment to end on a busy
# machine, and a zombie waits for init only.
no_process() {
    local process deadline=$((SECONDS + 20))
    [ -s "$work/processes" ] || return 1
    while read -r process; do
        while is_running "$process"; do
            [ $SECONDS -lt $deadline ] || { ps -o pid,args -p "$process" >>"$work/messages"; return 1; }
            sleep 0.1
        done
    done <"$work/processes"
}

is_running() {
    case $(ps -o stat= -p "$1") in
        '' | Z*) return 1 ;;
    esac
}

same() {
    [ "$1" = "$2" ] || { echo "expected '$1', got '$2'" >>"$work/messages"; return 1; }
}

differ() {
    [ -n "$1" ] && [ -n "$2" ] && [ "$1" != "$2" ]
}

check() {
    local what=$1
    shift
    "$@" >/dev/null || failed "$what"
}

fails() {
    local what=$1
    shift
    if "$@" >/dev/null; then failed "$what"; fi
}

failed() {
    echo "broker: FAILED: $1" >&2
    tail -n 30 "$work/messages" >&2
    exit 1
}

finish() {
    local folder
    for folder in "$one" "$two" "$three"; do
        broker "$folder" stop || true
    done
    "$here/scripts/cluster.sh" --dir "$cluster" stop 2>/dev/null || true
    rm -rf "$work"
}

trap finish EXIT
trap 'exit 1' HUP INT TERM
main
