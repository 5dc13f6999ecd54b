//! Which tests show the promises of docs/guarantees.md about programs, and what it does not promise.

use super::Promise;

pub(super) const OF_PROGRAMS: &[Promise] = &[
    // Lost connections are replaced
    (
        "Silent broker",
        &[
            "row_27_a_blackhole_is_noticed_within_two_heartbeats_and_left_when_it_ends",
            "row_23_a_frozen_broker_is_noticed_within_two_heartbeats_and_used_again_when_it_thaws",
            "a_broker_that_proposes_no_heartbeat_gets_ours_and_is_noticed_when_it_falls_silent",
            "row_23_a_broker_that_proposes_no_heartbeat_sends_ours_and_is_noticed_when_it_freezes",
            "a_connection_with_tls_that_is_cut_or_freezes_is_replaced",
        ],
    ),
    (
        "Slow network",
        &[
            "row_32_a_slow_network_is_no_dead_one",
            "threads_that_fill_a_slow_line_do_not_take_it_for_a_silent_one",
        ],
    ),
    ("Blocked standard error", &["a_standard_error_that_nobody_reads_stops_no_heartbeats"]),
    ("All consumers resume", &["row_15_cut_connections_are_replaced_with_all_their_consumers"]),
    (
        "Stale deliveries",
        &[
            "what_a_dead_connection_had_buffered_is_never_started",
            "what_a_process_that_stood_still_had_buffered_is_never_started",
            "a_shorter_heartbeat_of_the_broker_shows_a_process_that_it_stood_still",
        ],
    ),
    (
        "Late acks",
        &[
            "a_task_whose_session_is_lost_is_never_acked_later_and_counts_as_orphaned",
            "a_late_task_is_acked_on_no_later_session",
        ],
    ),
    ("Deleted queue", &["row_36_a_queue_deleted_while_consuming_is_declared_and_consumed_again"]),
    (
        "Reported waits",
        &[
            "a_host_that_does_not_answer_is_named_while_it_is_waited_for_and_when_it_is_passed_over",
            "a_channel_that_is_slow_to_open_is_reported",
            "a_consumer_that_is_slow_to_be_let_in_is_reported",
            "a_hand_over_that_is_not_confirmed_is_reported",
            "an_alarm_in_the_middle_of_a_hand_over_is_reported_and_what_was_confirmed_is_acked",
        ],
    ),
    (
        "Broken addresses",
        &[
            "a_producer_reaches_the_healthy_host_behind_three_silent_ones_in_time",
            "of_silent_hosts_each_that_was_tried_is_named_with_its_own_cause",
            "a_producer_whose_address_freezes_in_the_middle_confirms_everything_in_time",
            "after_a_frozen_address_the_others_are_tried_first",
            "an_address_that_was_silent_is_tried_after_one_that_lost_a_connection",
        ],
    ),
    (
        "Frozen node",
        &["a_frozen_node_is_left_before_a_task_s_time_is_up_whatever_heartbeat_the_url_asks_for"],
    ),
    (
        "Silent channel",
        &[
            "a_connection_that_confirms_nothing_is_left_once_for_another",
            "a_connection_to_the_only_address_that_confirms_nothing_is_left_once_as_well",
        ],
    ),
    ("Last try", &["a_task_is_tried_once_more_just_before_its_time_ends"]),
    (
        "Spread",
        &[
            "a_fleet_spreads_over_its_addresses",
            "addresses_are_tried_in_the_order_given_where_that_is_asked_for",
        ],
    ),
    (
        "Login",
        &[
            "a_cut_at_the_login_is_no_refusal_however_late_it_comes",
            "a_limit_on_connections_that_is_reached_is_waited_out",
            "a_login_that_is_refused_in_words_is_status_2_however_long_the_broker_takes",
            "a_wrong_password_is_status_2_also_where_the_timeout_is_short",
        ],
    ),
    (
        "The broker's words",
        &[
            "the_broker_s_own_words_are_in_the_line_that_reports_a_lost_session",
            "the_broker_s_own_words_are_reported_also_where_it_closes_at_the_login",
        ],
    ),
    (
        "Unreadable messages",
        &[
            "a_message_that_cannot_be_parsed_trips_the_breaker_with_cause_and_remedy",
            "a_letter_that_cannot_be_parsed_is_named_with_the_remedy",
            "headers_that_are_nested_too_deep_trip_the_breaker_and_do_not_kill_the_process",
            "a_return_that_is_nested_too_deep_ends_the_session_and_not_the_producer",
            "a_start_that_is_nested_too_deep_is_no_broker_and_reported_as_the_cause",
            "a_task_whose_headers_are_nested_as_deep_as_is_taken_fails_like_any_other",
        ],
    ),
    (
        "Wrong answers",
        &[
            "a_delivery_tag_that_comes_twice_ends_the_session",
            "a_return_of_something_else_ends_the_connection_and_what_is_in_flight_is_published_again",
            "no_confirm_behind_a_return_of_something_else_counts",
            "more_deliveries_than_the_prefetch_allows_end_the_session",
            "what_nobody_asked_for_costs_a_session_and_no_more",
            "a_damaged_byte_costs_a_session_and_no_more",
            "the_first_word_on_a_task_counts_and_none_on_another",
        ],
    ),
    (
        "Stalled and oversized frames",
        &[
            "a_message_that_does_not_come_on_ends_the_session_though_heartbeats_do",
            "an_absurd_size_ends_the_session_and_neither_the_process_nor_its_memory",
            "an_absurd_size_ends_the_session_over_tls_too",
        ],
    ),
    (
        "Alarms",
        &[
            "rows_33_and_35_an_alarm_is_reported_once_and_publishing_goes_on_when_it_ends",
            "a_worker_stopped_during_an_alarm_acks_what_it_finished",
        ],
    ),
    // Every stop is bounded
    (
        "First signal",
        &[
            "a_stop_gives_back_what_is_prefetched_at_once_and_waits_for_what_runs",
            "rows_4_and_6_a_busy_worker_gives_back_at_once_and_finishes_what_runs",
        ],
    ),
    (
        "Requeue",
        &[
            "many_that_a_stop_gives_back_go_by_one_nack_that_covers_no_task_that_runs",
            "a_few_that_a_stop_gives_back_do_not_wait_for_the_task_that_runs",
        ],
    ),
    (
        "Grace",
        &[
            "one_stop_ends_the_tasks_of_all_queues_within_the_grace",
            "a_signal_at_any_step_of_a_silent_broker_ends_it_within_the_grace_and_5_s",
            "row_23_signals_to_a_worker_of_a_frozen_broker_end_it_in_bounded_time",
            "signals_in_a_blackhole_end_a_worker_in_bounded_time",
            "signals_to_a_worker_of_a_frozen_tls_front_end_it_in_bounded_time",
        ],
    ),
    (
        "Second signal",
        &[
            // Of a worker and of a producer.
            "a_second_signal_at_any_step_of_a_silent_broker_ends_it_within_2_s",
            "row_5_a_second_signal_ends_it_within_two_seconds_with_130_and_nothing_is_lost",
            "a_second_signal_in_a_blackhole_ends_a_worker_within_2_s_also_after_a_hand_over",
        ],
    ),
    (
        "Last report",
        &[
            "what_ends_after_the_connection_went_silent_is_reported_as_what_may_run_twice",
            "what_is_left_behind_running_is_reported_as_requeued",
        ],
    ),
    ("Blocked signals", &["a_signal_stops_it_also_where_whoever_started_it_had_blocked_that"]),
    ("Terminal", &["row_7_a_ctrl_c_in_the_terminal_does_not_reach_the_program"]),
    (
        "Stubborn commands",
        &["row_9_who_ignores_sigterm_is_killed_after_5_s", "the_third_signal_kills_at_once"],
    ),
    (
        "Interrupted batch",
        &[
            "a_batch_that_a_signal_ends_before_it_is_through_exits_with_4",
            "a_signal_after_the_last_of_max_tasks_has_begun_changes_nothing",
        ],
    ),
    (
        "Task budget",
        &[
            "max_tasks_counts_the_tasks_of_all_queues_and_the_rest_stays",
            "no_more_is_taken_than_max_tasks_allows",
            "workers_of_many_threads_that_do_some_tasks_each_return_none_of_them",
        ],
    ),
    (
        "Producer",
        &[
            "a_signal_at_any_step_of_a_silent_broker_ends_it_within_its_timeout_and_5_s",
            "a_second_signal_in_the_middle_of_a_large_task_leaves_it_in_failed",
            "row_34_a_producer_stopped_during_an_alarm_ends_in_time_and_says_what_is_unconfirmed",
            "row_34_an_alarm_before_the_first_delayed_task_is_reported_and_what_is_unconfirmed_kept",
            "a_second_signal_while_a_delay_queue_is_asked_for_keeps_what_was_not_confirmed",
        ],
    ),
    (
        "Containers",
        &[
            "what_commands_leave_behind_is_reaped_and_each_has_its_own_status",
            "signals_and_statuses_go_through_the_first_process",
        ],
    ),
    (
        "Health file",
        &[
            "the_health_file_is_there_while_all_is_well",
            "the_health_file_is_removed_also_where_there_is_no_orderly_end",
        ],
    ),
    ("Resources", &["row_70_a_thousand_sessions_die_of_nothing_and_leave_no_thread_or_descriptor"]),
    // Nothing leaks
    (
        "Passwords",
        &[
            "no_password_shows_at_any_level_when_all_goes_well_or_the_connection_is_lost",
            "row_58_bad_addresses_and_logins_exit_2_in_one_line_without_the_password",
        ],
    ),
    ("Certificates", &["row_59_a_wrong_certificate_is_exit_2_in_one_line_and_nothing_is_sent"]),
    ("No injection", &["no_body_and_no_header_can_say_what_is_run"]),
    // What is not promised
    (
        "Exactly once",
        &["rows_2_and_49_a_task_that_kills_its_worker_is_redelivered_as_such_and_done_twice"],
    ),
    ("An outcome for each task", &["a_worker_with_auto_ack_reports_nothing"]),
    (
        "Options that give tasks up",
        &[
            "with_auto_ack_a_killed_worker_loses_what_it_had",
            "a_broker_restart_keeps_a_durable_queue_with_its_persistent_tasks_only",
        ],
    ),
    ("Closed standard output", &["closed_standard_output_is_no_place_for_what_is_tagged"]),
    (
        "Blocked standard output",
        &["stopped_while_it_cannot_print_it_reports_how_far_it_came_and_keeps_what_failed"],
    ),
];
