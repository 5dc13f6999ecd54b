//! [`Rate`]: the value of --rate.

use std::str::FromStr;
use std::time::Duration;

/// So many tasks in so long a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) tasks: u32,
    pub(crate) per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let parts = text.split_once('/').and_then(|(tasks, unit)| {
            let seconds = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            Some((tasks.parse().ok()?, Duration::from_secs(seconds)))
        });
        match parts {
            Some((0, _)) => Err("0 would start no task; write 1 or more".into()),
            Some((tasks, per)) => Ok(Rate { tasks, per }),
            None => Err("write 5/s, 100/m or 1000/h".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_for_each_unit_of_time() {
        for (text, tasks, seconds) in [("5/s", 5, 1), ("100/m", 100, 60), ("1000/h", 1000, 3600)] {
            assert_eq!(text.parse(), Ok(Rate { tasks, per: Duration::from_secs(seconds) }));
        }
        for text in
            ["", "5", "/s", "5/", "5/d", "5 /s", "0.5/s", "-1/s", "0/s", "5/s/s", "9999999999/s"]
        {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
