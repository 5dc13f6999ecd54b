#!/usr/bin/env bash
# Runs integration tests with brokers of their own, on which a queue that is declared without a
# type is a quorum queue.
# Usage: tests/quorum.sh [NAME...], the tests whose names contain one of these ('' is in all);
# without a name, a few that take a task all the way from its publishing to its replay.
set -eu -o pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || set -- \
    hello_world_is_received_done_and_acked \
    max_tasks_is_exact_and_the_rest_stays \
    a_task_comes_back_after_each_delay_with_its_attempts_counted_and_all_it_had \
    a_dead_letter_explains_itself_and_is_otherwise_as_it_was_sent \
    several_workers_that_drain_one_queue_all_end_and_report_their_own_dead_letters \
    status_counts_what_is_ready_waits_and_is_dead \
    dead_replay_resets_the_attempts_and_a_second_death_keeps_the_history
tests=("${RW_IT:-}")
[ -n "${tests[0]}" ] || tests=(cargo test --locked --test it --)
unset AMQP_URL RW_TEST_URL
RW_QUEUE_TYPE=quorum "${tests[@]}" "$@"
