#!/usr/bin/env bash
# Checks that the commands share queues with pika, Python's client, declared as RabbitMQ's
# tutorials declare them: `hello` and `task_queue` of 3.13, and the quorum queues of 4.x. Needs
# python3 and, the first time, a package index; without them it says that it was skipped.
#
# usage: tests/pika.sh [FOLDER WITH THE COMMANDS]     AMQP_URL set: that broker is used.
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bin=${1:-${RW_BIN:-${CARGO_TARGET_DIR:-$here/target}/debug}}
work=$(mktemp -d)
venv=$here/target/pika
trap finish EXIT
trap 'exit 1' HUP INT TERM

main() {
    command -v python3 >/dev/null || skip "python3 is missing"
    "$venv/bin/python" -c 'import pika' 2>/dev/null || install_pika
    url=$("$here/scripts/broker.sh" --dir "$work/broker" start) || fail "no broker"
    url=${AMQP_URL:-$url}
    # Names of its own where the broker is not: they are deleted at the end.
    suffix=.$$.$RANDOM
    check "the hello of 3.13" hello classic --transient-queue
    check "the task_queue of 3.13" task_queue durable
    # Ours adds a delivery limit with a dead-letter route, so one of theirs is used as it is.
    check "the quorum queues of 4.x" quorum quorum --no-declare
    echo "pika: all checks passed"
}

install_pika() {
    python3 -m venv "$venv" >"$work/log" 2>&1 || skip "python3 -m venv does not work (Debian: apt-get install python3-venv)"
    "$venv/bin/pip" install --quiet 'pika>=1.3,<2' >"$work/log" 2>&1 || skip "pip cannot install pika"
}

# Both directions, and each side declares after the other.
check() {
    local what=$1 queue=$2$suffix kind=$3
    shift 3
    pika send "$queue" "$kind" "from pika" >"$work/out" 2>&1 || fail "$what: pika publishes"
    said "$what: worker takes from pika" "Received 'from pika'" \
        timeout 60 "$bin/worker" --url "$url" --queue "$queue" "$@" --print --threads 1 --max-tasks 1
    said "$what: producer publishes" "Sent 'from us'" \
        timeout 60 "$bin/producer" --url "$url" --queue "$queue" "$@" from us
    said "$what: pika takes from producer" "received from us" pika receive "$queue" "$kind"
}

said() {
    local what=$1 words=$2
    shift 2
    "$@" >"$work/out" 2>&1 || fail "$what: exit $?"
    grep -qF "$words" "$work/out" || fail "$what: not a word of \"$words\""
}

pika() {
    timeout 60 "$venv/bin/python" - "$url" "$@" <<'PYTHON'
import sys
import pika

url, act, queue, kind = sys.argv[1:5]
declare = {
    "classic": {},
    "durable": {"durable": True},
    "quorum": {"durable": True, "arguments": {"x-queue-type": "quorum"}},
}[kind]
if not url.rstrip("/").rsplit("@", 1)[-1].count("/"):
    url = url.rstrip("/") + "/%2F"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.queue_declare(queue=queue, **declare)
if act == "send":
    persistent = pika.BasicProperties(delivery_mode=2)
    channel.basic_publish("", queue, sys.argv[5].encode(), persistent)
else:
    channel.basic_qos(prefetch_count=1)
    for method, _, body in channel.consume(queue, inactivity_timeout=30):
        if method is None:
            sys.exit("nothing came within 30 s")
        print("received", body.decode())
        channel.basic_ack(method.delivery_tag)
        break
    channel.cancel()
    channel.queue_delete(queue)
connection.close()
PYTHON
}

skip() {
    echo "pika: SKIPPED: $1; nothing was checked" >&2
    exit 77
}

fail() {
    echo "pika: FAILED: $1" >&2
    tail -n 20 "$work/out" >&2 2>/dev/null || true
    exit 1
}

finish() {
    env -u AMQP_URL "$here/scripts/broker.sh" --dir "$work/broker" stop >/dev/null 2>&1 || true
    rm -rf "$work"
}

main
