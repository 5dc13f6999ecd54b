//! [`Ids`]: the ids of new tasks.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::{Builder, Uuid};

/// Makes a UUID of version 7 for each task, so that ids sort by time. Random bytes are asked of the
/// system once, not for each task: the ids of one producer count up from there.
#[derive(Debug)]
pub(crate) struct Ids {
    random: [u8; 2],
    count: u64,
}

/// Leaves room to count up: the two highest bits are the UUID's variant.
const LARGEST_START: u64 = u64::MAX >> 3;

impl Ids {
    pub(crate) fn new() -> Ids {
        let (high, low) = Uuid::now_v7().as_u64_pair();
        let [.., first, second] = high.to_be_bytes();
        Ids { random: [first, second], count: low & LARGEST_START }
    }

    pub(crate) fn next_id(&mut self, now: SystemTime) -> String {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.count += 1;
        let mut rest = [0; 10];
        rest[..2].copy_from_slice(&self.random);
        rest[2..].copy_from_slice(&self.count.to_be_bytes());
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = Builder::from_unix_timestamp_millis(millis, &rest).into_uuid();
        id.hyphenated().encode_lower(&mut text).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn ids_sort_by_time_and_differ_within_and_between_producers() {
        let mut seen = HashSet::new();
        for mut ids in [Ids::new(), Ids::new()] {
            let mut last = String::new();
            for step in 0..10_000_u64 {
                let id = ids.next_id(UNIX_EPOCH + Duration::from_micros(1_000_000 + 300 * step));
                let uuid: Uuid = id.parse().expect("a UUID");
                assert_eq!((uuid.get_version_num(), uuid.to_string()), (7, id.clone()));
                assert!(id > last && seen.insert(id.clone()), "{last} {id}");
                last = id;
            }
        }
    }
}
