//! Property tests of `Confirms`, with a plain list as the model.

use proptest::prelude::*;

use crate::amqp::channel::Reach;
use crate::publish::confirms::Confirms;

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish,
    Confirm(Reach),
    /// Gives up every publish whose tag can be divided by this.
    GiveUp(u64),
}

/// What is known of one publish, by a model that is too slow for use and too plain to be wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Awaited,
    GivenUp,
    Resolved,
}

fn step() -> impl Strategy<Value = Step> {
    // A broker that says what nobody asked for, too.
    let tag = prop_oneof![4 => 0..20_u64, 1 => Just(u64::MAX)];
    prop_oneof![
        3 => Just(Step::Publish),
        2 => tag.clone().prop_map(|tag| Step::Confirm(Reach::One(tag))),
        1 => tag.prop_map(|tag| Step::Confirm(Reach::UpTo(tag))),
        1 => (1..4_u64).prop_map(Step::GiveUp),
    ]
}

/// The tags that are in this state and in this reach change to another, in their order.
fn change(states: &mut [State], from: State, to: State, reaches: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut changed = Vec::new();
    for (state, tag) in states.iter_mut().zip(1..) {
        if *state == from && reaches(tag) {
            *state = to;
            changed.push(tag);
        }
    }
    changed
}

proptest! {
    #[test]
    fn confirms_do_as_a_list_that_is_searched(steps in proptest::collection::vec(step(), 0..60)) {
        let mut confirms = Confirms::new();
        let mut states = Vec::new();
        for step in steps {
            match step {
                Step::Publish => {
                    states.push(State::Awaited);
                    confirms.publish(states.len() as u64);
                }
                Step::Confirm(reach) => {
                    let (Reach::One(to) | Reach::UpTo(to)) = reach;
                    let reaches = |tag| match reach {
                        Reach::One(one) => tag == one,
                        Reach::UpTo(last) => tag <= last,
                    };
                    prop_assert_eq!(confirms.allows(reach), to > 0 && to <= states.len() as u64);
                    let awaited = change(&mut states, State::Awaited, State::Resolved, reaches);
                    let late = change(&mut states, State::GivenUp, State::Resolved, reaches);
                    prop_assert_eq!(confirms.resolve(reach), (awaited, late));
                }
                Step::GiveUp(divisor) => {
                    let reaches = |tag| tag % divisor == 0;
                    let given_up = change(&mut states, State::Awaited, State::GivenUp, reaches);
                    prop_assert_eq!(confirms.give_up(|tag| reaches(*tag), |tag| *tag), given_up);
                }
            }
            let awaited = states.iter().filter(|it| **it == State::Awaited).count();
            prop_assert_eq!(confirms.len(), awaited);
            let owes_none = states.iter().all(|it| *it == State::Resolved);
            prop_assert_eq!(confirms.owes_none(), owes_none);
        }
    }
}
