#!/usr/bin/env bash
# Runs the tests of tests/it/cluster/ against a cluster of three nodes that it starts and ends.
# Where there can be none, it says so and ends with 77.
# Usage: tests/cluster.sh [NAME], the tests whose names contain NAME
set -eu -o pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tests=("${RW_IT:-}")
[ -n "${tests[0]}" ] || tests=(cargo test --locked --quiet --test it --)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Not before the cluster has ended, which the signal reaches, too.
trap 'exit 143' HUP INT TERM
status=0
scripts/cluster.sh --dir "$work/cluster" run \
    "${tests[@]}" "cluster::${1:-}" --ignored --nocapture --skip cluster::soak || status=$?
# No rabbitmq-server, as it has said.
[ $status != 69 ] || status=77
exit $status
