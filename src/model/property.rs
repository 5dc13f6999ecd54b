//! Property tests of URLs, retries and delays.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::broker::Broker;
use crate::model::delays::{LONGEST_DELAY, all_delays, round_up};
use crate::model::handler::Failure;
use crate::model::retry::{Decision, RetryPolicy};
use crate::model::url_parts::UrlParts;

/// A password that no other part of a URL contains by chance.
const PASSWORD: &str = "S3kr1t";

/// URLs, right and wrong, that have a password.
fn url_with_a_password() -> impl Strategy<Value = String> {
    let scheme = "amqps?://|http://|amqp:/|//|";
    let odd = "[ -~]{0,3}|[@/:?#%\\\\\\[]{0,3}|\\PC{0,3}";
    let host = "localhost|127\\.0\\.0\\.1|\\[::1\\]|\\[::1|[a-z.-]{0,9}|\\PC{0,3}";
    let rest =
        "(:[0-9]{0,6})?(/[a-z%2f]{0,5})?(\\?(heartbeat|connection_timeout|x)=[0-9a-z]{0,6})?";
    (scheme, "[a-z%]{0,5}", odd, odd, host, rest).prop_map(
        |(scheme, user, before, after, host, rest)| {
            format!("{scheme}{user}:{before}{PASSWORD}{after}@{host}{rest}")
        },
    )
}

fn policy() -> impl Strategy<Value = RetryPolicy> {
    let delay = || {
        prop_oneof![Just(Duration::ZERO), (0..4_000_000_000_u64).prop_map(Duration::from_millis)]
    };
    let factor = prop_oneof![Just(1.0), 1.0..10.0, Just(f64::MAX)];
    (1..=u32::MAX, delay(), factor, delay(), 0.0..=1.0).prop_map(
        |(attempts, first, factor, longest, jitter)| {
            let policy = RetryPolicy::new().max_attempts(attempts).first_delay(first);
            policy.factor(factor).longest_delay(longest).jitter(jitter)
        },
    )
}

fn any_delay() -> impl Strategy<Value = Duration> {
    prop_oneof![
        any::<Duration>(),
        (0..100_000_u64).prop_map(Duration::from_millis),
        (0..5_000_000_000_u64).prop_map(Duration::from_millis)
    ]
}

proptest! {
    #[test]
    fn no_url_shows_its_password(url in url_with_a_password()) {
        let shown = match url.parse::<Broker>() {
            Ok(broker) => format!("{broker} {broker:?} {broker:#?}"),
            Err(error) => format!("{error} {error:?} {error:#?}"),
        };
        prop_assert!(!shown.contains(PASSWORD), "{}", shown);
    }

    #[test]
    fn no_list_of_urls_shows_a_password(urls in vec(url_with_a_password(), 0..4)) {
        let shown = match Broker::new(&urls) {
            Ok(broker) => format!("{broker} {broker:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!shown.contains(PASSWORD), "{}", shown);
    }

    #[test]
    fn any_text_is_a_url_or_an_error(text in any::<String>()) {
        let _ = text.parse::<Broker>();
    }

    #[test]
    fn the_parts_of_a_url_are_decoded(
        user in "[a-z@:/ %]{1,9}", host in "[a-z][a-z0-9]{0,9}", port in 1..u16::MAX, vhost in "[a-z/ %]{1,9}",
    ) {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let url = format!("amqp://{}:{PASSWORD}@{host}:{port}/{}", encoded(&user), encoded(&vhost));
        let shown = format!("{:?}", url.parse::<Broker>().expect("a URL"));
        let parts = format!("{user}@{host}:{port}/{vhost}");
        prop_assert!(shown.contains(&parts), "{} in {}", parts, shown);
    }

    #[test]
    fn the_parts_of_a_url_are_those_that_the_crate_url_finds(
        login in "([a-z%40:-]{0,6}@)?", host in "[a-z][a-z0-9.-]{0,6}|\\[::[0-9a-f]{0,4}\\]",
        port in "(:[0-9]{0,5})?", path in "(/[a-z0-9%2f~-]{0,6})?", query in "(\\?[a-z0-9=&;/%2d-]{0,9})?",
    ) {
        let text = format!("amqp://{login}{host}{port}{path}{query}");
        match (UrlParts::of(&text), url::Url::parse(&text)) {
            (Ok(ours), Ok(theirs)) => {
                let (user, password) = ours.login.unwrap_or_default();
                // It encodes more of them.
                let bytes = |text| percent_decode_str(text).collect::<Vec<_>>();
                prop_assert_eq!(bytes(user), bytes(theirs.username()));
                let password = password.unwrap_or_default();
                prop_assert_eq!(bytes(password), bytes(theirs.password().unwrap_or_default()));
                let host = ours.host.unwrap_or_default();
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                prop_assert_eq!(Some(&*host), theirs.host_str());
                prop_assert_eq!(ours.port, theirs.port());
                prop_assert_eq!(ours.vhost, theirs.path().trim_start_matches('/'));
                prop_assert_eq!(ours.query, theirs.query().unwrap_or_default());
            }
            (ours, theirs) => prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}", text),
        }
    }

    #[test]
    fn a_rounded_delay_is_on_the_ladder_and_stays(delay in any_delay()) {
        let rounded = round_up(delay);
        prop_assert_eq!(round_up(rounded), rounded);
        prop_assert!(rounded >= delay || rounded == LONGEST_DELAY);
        prop_assert!(rounded.is_zero() == delay.is_zero());
        prop_assert!(rounded.is_zero() || all_delays().any(|it| it == rounded));
    }

    #[test]
    fn a_longer_delay_is_rounded_to_no_shorter_one(one in any_delay(), other in any_delay()) {
        let (short, long) = (one.min(other), one.max(other));
        prop_assert!(round_up(short) <= round_up(long));
    }

    #[test]
    fn a_retry_is_never_later_than_the_longest_delay(
        policy in policy(), longest in any_delay(), attempt in prop_oneof![1..20_u32, 1..=u32::MAX],
    ) {
        let policy = policy.longest_delay(longest);
        prop_assume!(policy.validate().is_ok());
        prop_assert!(policy.delay_after(attempt) <= round_up(longest));
        prop_assert!(policy.delay_after(attempt) <= policy.delay_after(attempt.saturating_add(1)));
        match policy.decide(attempt, &Failure::retry("no")) {
            // With jitter it may be earlier.
            Decision::Retry(delay) => prop_assert!(delay <= policy.delay_after(attempt)),
            Decision::Dead => prop_assert!(attempt >= policy.attempt_limit()),
            Decision::Requeue | Decision::Defer(_) => prop_assert!(false, "it failed"),
        }
    }

    #[test]
    fn a_delay_of_the_handlers_own_is_at_most_the_longest(policy in policy(), delay in any_delay()) {
        if let Decision::Retry(delay) = policy.decide(1, &Failure::retry_after("busy", delay)) {
            prop_assert!(delay <= LONGEST_DELAY);
        }
    }

    #[test]
    fn the_series_of_delays_rises_and_ends(policy in policy()) {
        prop_assume!(policy.validate().is_ok());
        let series = policy.series();
        prop_assert!(series.is_sorted());
        prop_assert!(series.iter().all(|it| *it <= LONGEST_DELAY));
    }
}
