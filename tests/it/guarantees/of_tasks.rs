//! Which tests show the promises of docs/guarantees.md about tasks.

use super::Promise;

pub(super) const OF_TASKS: &[Promise] = &[
    // Nothing is lost
    (
        "Broker killed",
        &[
            "row_22_kill_9_of_the_broker_loses_nothing_that_was_confirmed",
            "row_22_kill_9_right_after_the_first_confirm_of_a_new_queue_loses_nothing",
            "a_queue_that_we_make_is_written_down_before_it_is_used",
        ],
    ),
    ("Broker restarted", &["row_21_graceful_restarts_lose_nothing_and_the_worker_comes_back"]),
    (
        "Worker killed",
        &[
            "row_1_kill_9_in_a_task_gives_it_to_another_worker_at_once",
            "a_worker_that_is_killed_gives_everything_back",
        ],
    ),
    ("Producer killed", &["row_62_what_a_killed_producer_said_was_sent_is_on_the_queue"]),
    (
        "Connection cut",
        &[
            "row_25_a_cut_after_every_byte_of_a_publish_loses_nothing",
            "row_25_a_cut_after_every_byte_of_a_worker_s_session_loses_nothing",
            "row_25_a_cut_in_the_first_handshake_delays_a_producer_and_a_worker_and_no_more",
        ],
    ),
    (
        "Ack after the work",
        &[
            "the_ack_comes_after_the_handler_returned_and_on_the_same_channel",
            "one_ack_covers_tasks_that_are_done_and_none_that_stays",
        ],
    ),
    (
        "Bodies",
        &[
            "rows_53_and_54_bodies_arrive_byte_for_byte",
            "a_body_arrives_byte_for_byte_whatever_its_length",
        ],
    ),
    (
        "No stream",
        &[
            "a_worker_of_a_classic_queue_hands_no_task_over_to_a_stream",
            "a_worker_of_a_quorum_queue_refuses_a_stream_for_its_dead_letters",
        ],
    ),
    (
        "Quorum by default",
        &[
            "where_quorum_is_the_default_a_new_queue_is_one_with_a_route_for_what_kills_its_worker",
            "a_quorum_queue_that_somebody_else_declared_without_arguments_is_used_as_it_is",
            "a_policy_sends_what_kills_its_worker_to_the_dead_letters",
        ],
    ),
    ("Random faults", &["soak"]),
    // Every publish has an outcome
    (
        "One receipt for each task",
        &["a_producer_publishes_ten_thousand_tasks_with_one_receipt_each"],
    ),
    ("Nacks", &["row_45_a_nack_before_an_ack_of_many_refuses_exactly_its_own"]),
    (
        "Refused tasks",
        &[
            "a_refused_task_is_published_again_under_its_id_until_it_is_taken",
            "a_task_that_is_returned_because_its_queue_is_down_waits_for_the_queue",
            "a_queue_that_is_full_takes_the_rest_once_there_is_room",
            "a_task_that_is_refused_until_its_timeout_is_nacked_and_its_queue_is_named",
        ],
    ),
    (
        "Returned tasks",
        &[
            "row_57_a_task_without_a_queue_is_returned",
            "a_delayed_task_for_a_queue_that_is_not_there_is_returned_as_well",
            "row_37_a_queue_deleted_while_publishing_shows_in_returns",
        ],
    ),
    (
        "Late returns",
        &[
            "a_return_that_comes_late_does_not_count_for_the_same_task_published_again",
            "a_return_of_another_task_with_the_id_of_one_that_was_given_up_counts_for_that_other",
            "a_return_that_may_be_of_several_counts_for_each_of_them",
        ],
    ),
    ("Late receipts", &["what_was_confirmed_in_time_is_confirmed_however_late_anybody_asks"]),
    (
        "Missing confirms",
        &[
            "row_46_a_confirm_that_never_comes_is_unconfirmed_after_the_timeout",
            "a_delay_queue_that_is_asked_for_in_vain_is_waited_for_within_the_timeout",
        ],
    ),
    (
        "Failed file",
        &[
            "what_was_not_confirmed_can_be_fed_again_and_nothing_else",
            "row_44_refused_tasks_are_nacked_exit_1_and_written_to_failed_exactly",
        ],
    ),
    (
        "Oversized input",
        &[
            "a_line_that_is_too_long_is_reported_and_neither_held_in_memory_nor_in_the_way",
            "what_is_too_long_is_in_failed_byte_for_byte",
        ],
    ),
    (
        "Interrupted input",
        &["stopped_in_the_middle_each_task_that_was_read_is_on_the_queue_or_in_failed"],
    ),
    // Failed tasks are retried or kept
    ("Retries", &["a_task_comes_back_after_each_delay_with_its_attempts_counted_and_all_it_had"]),
    (
        "Attempts",
        &["row_48_a_task_that_always_fails_runs_as_often_as_the_policy_allows_and_never_sooner"],
    ),
    (
        "Deferrals",
        &[
            "a_task_deferred_fifty_times_and_then_failing_twice_has_two_attempts",
            "a_command_says_how_long_its_task_waits_and_frees_its_thread",
            "a_deferred_task_is_acked_after_the_confirm_at_whatever_step_its_worker_dies",
            "killed_between_the_confirm_and_the_ack_a_worker_loses_nothing_and_counts_no_attempt",
            "killed_in_the_middle_of_deferrals_a_worker_loses_nothing",
            "one_deferral_too_many_is_a_dead_letter_that_says_so",
        ],
    ),
    (
        "Start rate",
        &[
            "eight_threads_start_five_tasks_a_second_and_spread_them_evenly",
            "a_stop_while_tasks_wait_for_their_start_is_immediate_and_requeues_them",
            "a_task_whose_connection_is_lost_while_it_waits_for_its_start_comes_again_and_runs_once",
            "a_wait_of_more_than_two_heartbeats_costs_neither_the_task_nor_the_connection",
            "a_task_that_waits_for_its_start_for_longer_than_consumer_timeout_has_not_failed",
        ],
    ),
    ("Dead letter limit", &["a_worker_ends_with_1_after_so_many_dead_letters_and_leaves_the_rest"]),
    (
        "Time limit",
        &[
            "row_12_at_the_time_limit_the_whole_group_ends",
            "rows_9_and_12_a_program_that_ignores_the_time_limit_is_killed",
            "row_12_the_others_go_on_while_a_program_runs_into_its_time_limit",
        ],
    ),
    (
        "Dead letters",
        &[
            "a_dead_letter_explains_itself_and_is_otherwise_as_it_was_sent",
            "a_dead_letter_says_how_it_ended_and_what_was_said_last",
            "a_list_of_dead_letters_shows_how_each_ended_and_what_was_said_last",
        ],
    ),
    (
        "Confirm, then ack",
        &[
            "killed_in_the_middle_of_hand_overs_a_worker_loses_nothing",
            "cut_connections_in_the_middle_of_hand_overs_lose_nothing",
            "a_broker_killed_in_the_middle_of_hand_overs_loses_nothing",
        ],
    ),
    (
        "Large headers",
        &[
            "a_task_whose_headers_fill_a_frame_still_ends_as_a_dead_letter",
            "a_record_makes_room_for_a_task_s_own_headers_also_where_frames_are_small",
        ],
    ),
    (
        "Invalid UTF-8",
        &[
            "headers_that_are_not_utf_8_keep_their_bytes_and_what_is_behind_them",
            "properties_that_are_not_utf_8_become_ascii_and_take_no_others_with_them",
        ],
    ),
    (
        "Unavailable command",
        &[
            "a_program_that_is_replaced_is_waited_for_and_no_task_goes_back",
            "a_program_that_stays_away_ends_the_worker_and_its_task_goes_back_uncounted",
            "a_program_that_the_system_does_not_know_ends_the_worker",
        ],
    ),
    (
        "Follow-ups",
        &[
            "a_chain_of_three_follow_ups_cut_anywhere_loses_nothing",
            "a_chain_whose_worker_dies_at_every_step_loses_nothing",
            "a_chain_whose_worker_is_killed_at_any_moment_loses_nothing",
            "a_chain_whose_broker_is_killed_loses_nothing",
            "a_follow_up_that_no_queue_takes_sends_its_task_back_uncounted",
        ],
    ),
    ("Failed tasks have none", &["a_failed_attempt_has_no_follow_ups_however_it_fails"]),
    (
        "Refused copies",
        &[
            "what_cannot_be_handed_over_goes_back_after_a_pause_uncounted",
            "tasks_behind_many_that_cannot_be_handed_over_go_on",
            "tasks_behind_slow_ones_that_cannot_be_handed_over_go_on",
        ],
    ),
    (
        "Delay queue without a leader",
        &[
            "a_delay_queue_that_gives_no_answer_is_gone_around",
            "a_delay_queue_that_gives_no_answer_between_two_heartbeats_is_gone_around",
            "a_delay_queue_of_which_a_task_was_not_confirmed_is_asked_again",
        ],
    ),
    (
        "One connection",
        &["with_one_connection_allowed_failed_tasks_are_handed_over_and_a_drain_ends"],
    ),
    (
        "Replay",
        &[
            "a_replay_killed_at_any_moment_loses_nothing",
            "a_replay_right_after_a_peek_replays_all",
            "a_replayed_task_no_longer_expires",
            "a_letter_whose_headers_make_no_sense_holds_up_none_behind_it",
        ],
    ),
    (
        "Selected letters",
        &[
            "chosen_letters_are_replayed_in_one_go_and_those_that_are_missing_named",
            "chosen_letters_are_thrown_away_and_the_others_stay",
            "no_ids_choose_no_letter",
        ],
    ),
    (
        "Many letters",
        &[
            "many_letters_are_back_at_once_after_a_peek",
            "a_long_line_is_crossed_for_many_letters_at_once",
            "large_letters_are_listed_in_little_memory",
        ],
    ),
    (
        "Unanswered requests",
        &[
            "what_is_asked_for_and_not_answered_may_still_happen",
            "what_was_never_asked_for_will_not_happen",
        ],
    ),
    ("Safe listing", &["letters_that_peeks_would_destroy_are_not_peeked_at_but_replayed"]),
    ("Crash loops", &["a_killer_on_a_quorum_queue_becomes_a_dead_letter_that_says_so"]),
    ("Exit statuses", &["row_11_each_of_10_000_ends_is_settled_as_what_it_is"]),
    (
        "Records",
        &[
            "a_log_that_cannot_be_written_leaves_the_task_in_the_queue",
            "results_that_cannot_be_written_leave_the_task_in_the_queue",
            "kill_9_between_the_end_of_a_command_and_the_rename_leaves_no_half_result",
        ],
    ),
    (
        "Panics",
        &[
            "row_13_a_panic_is_a_failed_task_and_the_thread_goes_on",
            "row_14_a_thousand_panics_in_every_thread_kill_no_connection_and_lose_no_task",
            "an_observer_that_panics_with_what_panics_holds_up_no_task",
            "a_stop_is_bounded_also_where_the_handler_panics_at_it",
        ],
    ),
    (
        "Drain",
        &[
            "several_workers_that_drain_one_queue_all_end_and_report_their_own_dead_letters",
            "a_drain_waits_for_a_large_task_on_a_slow_line",
            "what_was_on_its_way_when_the_queue_was_empty_is_worked_before_a_drain_ends",
            "a_drain_waits_until_the_broker_must_have_noticed_that_a_connection_was_lost",
            "a_drain_waits_as_long_where_the_connection_is_lost_behind_a_channel",
            "a_drain_lets_a_task_of_a_lost_session_end_that_another_thread_has_done_since",
            "a_letter_that_is_confirmed_when_its_consumer_is_gone_counts",
            "a_drain_reports_a_letter_that_may_exist",
            "a_count_without_the_own_consumer_ends_no_drain",
        ],
    ),
    (
        "Several queues",
        &[
            "a_drain_ends_when_all_queues_are_empty_at_one_moment",
            "a_drain_of_several_queues_waits_for_the_retries_of_each",
            "a_queue_that_is_refused_from_the_start_ends_no_other_and_is_in_the_exit_status",
            "a_queue_that_is_refused_later_ends_no_other_and_is_in_the_exit_status",
            "a_queue_that_is_refused_later_holds_up_no_drain_of_the_others",
            "a_worker_whose_handler_stops_it_holds_up_no_other",
        ],
    ),
    (
        "Delivery timeout",
        &[
            "row_43_a_delivery_timeout_of_a_real_broker_has_the_task_run_again_and_acked_once",
            "row_43_a_delivery_timeout_is_named_and_the_late_ack_is_not_sent",
            "row_43_a_consumer_cancelled_during_a_task_sends_no_late_ack_and_consumes_again",
            "row_43_a_cancel_of_the_broker_s_that_crosses_ours_sends_no_late_ack",
            "a_task_that_outlives_the_broker_s_patience_ends_as_a_dead_letter_and_keeps_one_thread",
            "a_task_that_is_late_once_counts_once_and_is_done_when_it_has_ended",
            "tasks_with_the_same_body_and_no_id_are_not_taken_for_one_that_is_late",
            "a_task_without_an_id_that_is_late_ends_as_a_dead_letter",
        ],
    ),
    // Batches are waited for
    (
        "Outcome, then ack",
        &[
            "one_of_two_workers_killed_in_the_middle_leaves_no_outcome_missing",
            "a_cut_after_every_few_bytes_of_an_outcome_leaves_none_missing_and_none_twice",
            "a_broker_restart_while_waiting_leaves_no_outcome_missing",
        ],
    ),
    (
        "Counted once",
        &[
            "each_task_ends_once_done_or_dead_and_retries_report_nothing",
            "a_cut_after_every_few_bytes_of_an_outcome_leaves_none_missing_and_none_twice",
        ],
    ),
    (
        "Killed waiter",
        &[
            "a_waiter_that_is_killed_at_three_points_goes_on_where_it_was",
            "a_line_that_a_crash_has_cut_is_removed",
        ],
    ),
    ("Outcomes on disk", &["an_outcome_that_cannot_be_written_stays_at_the_broker"]),
    (
        "Late outcomes",
        &[
            "an_alarm_while_outcomes_are_due_holds_their_tasks_and_loses_none",
            "an_outcome_without_a_confirm_is_reported_and_published_again_while_its_task_is_kept",
            "an_outcome_that_is_refused_is_published_again_while_its_task_is_kept",
        ],
    ),
    (
        "Deleted queue of outcomes",
        &[
            "a_deleted_queue_of_outcomes_holds_up_no_worker_and_ends_the_wait",
            "a_deleted_queue_of_outcomes_leaves_a_summary_of_what_is_confirmed_and_has_not_ended",
        ],
    ),
    ("Forged replies", &["a_worker_answers_no_forged_reply_to"]),
    ("Foreign messages", &["messages_that_are_no_outcomes_are_ignored"]),
    ("Memory of a wait", &["a_wait_needs_little_memory"]),
    (
        "Refused waits",
        &[
            "a_wait_that_could_not_end_is_refused",
            "a_file_of_something_else_is_refused_and_left_as_it_is",
            "the_file_of_another_batch_is_refused_before_anything_is_published",
        ],
    ),
];
